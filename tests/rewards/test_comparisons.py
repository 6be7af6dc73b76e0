"""Which replies are compared, and what verdicts become for training: every value below is counted by hand."""

import json

import pytest
from judge_server import completion, question
from werkzeug import Response

from exoalign.config_judge import JudgeSection
from exoalign.errors import ConfigError, DataError, JudgeError
from exoalign.groups import Group
from exoalign.rewards.comparisons import CONTROLS, Case, Judged, between, controls, singles, within
from exoalign.rewards.judge_client import Answer
from exoalign.rewards.judge_scorer import JudgeScorer
from exoalign.rewards.judged_groups import scores, win_shares, winners
from exoalign.rewards.verdicts import Verdict

VERDICTS = {"left": ("first", "second"), "right": ("second", "first"), "inconsistent": ("first", "first")}
GROUPS = [Group("p0", ("a", "b", "c"), provenance={"source": "f:1"}), Group("p1", ("d", "e"), winner=1)]


def judged(outcome: str, group: int, *completions: int) -> Judged:
    case = Case(group, completions, f"p{group}", ("x", "y"), "w")
    verdicts = tuple(map(Verdict, VERDICTS.get(outcome, (None, None))))
    return Judged(case, (), (), verdicts)


def test_pairs_within_groups():
    assert [(c.group, c.completions, c.texts) for c in within(GROUPS, "all")] == [
        (0, (0, 1), ("a", "b")),
        (0, (0, 2), ("a", "c")),
        (0, (1, 2), ("b", "c")),
        (1, (0, 1), ("d", "e")),
    ]
    assert [c.completions for c in within(GROUPS, "first")] == [(0, 1), (0, 2), (0, 1)]
    with pytest.raises(DataError, match="no group has two completions"):
        within([Group("p", ("a",))], "all")


def test_pairs_between_files_find_their_prompt():
    others = [Group("p1", ("D", "E")), Group("p9", ("z",)), Group("p0", ("A",))]
    cases, partners, notes = between([*GROUPS, Group("p7", ("y",))], others)
    assert [(c.group, c.completions, c.texts) for c in cases] == [
        (0, (0, 0), ("a", "A")),
        (1, (0, 0), ("d", "D")),
        (1, (1, 1), ("e", "E")),
    ]
    assert partners[:2] == [others[2], others[0]]
    assert notes == [
        "1 prompts are not in the other file, and 1 of its own not in this one: left out",
        "2 completions have no partner with the same number in the other file: left out",
    ]
    with pytest.raises(DataError, match="no prompt in common"):
        between(GROUPS, [Group("q", ("a",))])


def test_the_same_text_twice_is_not_asked():
    (case,) = within([Group("p", ("a", "a"))], "all")
    assert case.orders() == []
    assert Judged(case, (), (), ()).outcome == "tie"


def test_controls_stand_in_the_left_ones_place():
    groups = [Group(f"p{i}", ("real", "other")) for i in range(10)]
    found = controls(within(groups, "all"), 2)
    assert [(c.control, c.group, c.completions) for c in found] == [
        (name, group, (-1, 0)) for name in ("empty", "injection") for group in (0, 5)
    ]
    assert found[0].texts == (CONTROLS["empty"], "real")
    assert [c.texts for c in controls(singles(groups), 1)] == [(text,) for text in CONTROLS.values()]
    assert controls(singles(groups), 0) == []


def test_winners_are_groups_of_two_and_the_rest_is_counted():
    found, left_out = winners(
        [
            judged("left", 0, 0, 2),
            judged("right", 1, 0, 1),
            judged("inconsistent", 0, 0, 1),
            judged("invalid", 0, 1, 2),
        ],
        GROUPS,
        None,
    )
    assert [(g.completions, g.winner, g.rewards) for g in found] == [(("a", "c"), 0, None), (("d", "e"), 1, None)]
    assert left_out == {"inconsistent": 1, "invalid": 1}
    assert found[0].provenance["source"] == "f:1"


def test_winners_of_two_files_keep_token_ids_where_both_have_them():
    made = {"prompt_ids": (1, 2), "provenance": {"tokenizer": "t"}}
    ours = Group("p0", ("a", "b"), completion_ids=((3,), (4, 5)), **made)
    theirs = Group(
        "p0", ("A", "B"), completion_ids=((6, 7), (8, 9)), completion_masks=((True, True), (True, False)), **made
    )
    (found,), _ = winners([judged("right", 0, 1, 1)], [ours], [theirs])
    assert (found.completions, found.winner) == (("b", "B"), 1)
    assert (found.prompt_ids, found.completion_ids) == ((1, 2), ((4, 5), (8, 9)))
    assert found.completion_masks == ((True, True), (True, False))
    foreign = Group("p0", ("A", "B"), completion_ids=((6,), (8,)), prompt_ids=(1, 2), provenance={"tokenizer": "u"})
    (found,), _ = winners([judged("left", 0, 0, 0)], [ours], [foreign])
    assert found.prompt_ids is found.completion_ids is None


def test_win_shares_of_a_round_robin():
    found, left_out = win_shares(
        [
            judged("left", 0, 0, 1),
            judged("inconsistent", 0, 0, 2),
            judged("invalid", 0, 1, 2),
            judged("invalid", 1, 0, 1),
        ],
        GROUPS,
        both=True,
    )
    assert [group.rewards for group in found] == [(0.75, 0.0, 0.5)]  # (1 + 1/2) / 2, 0 / 1, (1/2) / 1
    assert left_out == {"groups with a completion that has no valid verdict": 1}


def test_win_shares_against_another_file():
    found, _ = win_shares([judged("left", 1, 0, 0), judged("right", 1, 1, 1)], GROUPS, both=False)
    assert [(group.rewards, group.winner) for group in found] == [((1.0, 0.0), None)]


def test_scores_are_rewards():
    cases = [
        Judged(Case(1, (k,), "p1", ("x",), "w"), (), (), (Verdict(score=score),)) for k, score in enumerate((7.0, 2.0))
    ]
    assert [(group.rewards, group.winner) for group in scores(cases, GROUPS)[0]] == [((7.0, 2.0), None)]
    assert scores(cases[:1], GROUPS) == ([], {"groups with a completion that has no valid verdict": 2})


# As a scorer.


@pytest.fixture
def scorer(httpserver, tmp_path):
    def make(**settings) -> JudgeScorer:
        values = {"url": httpserver.url_for("/v1"), "model": "m", "kind": "pointwise", **settings}
        return JudgeScorer(JudgeSection(**values), name="grade")

    return make


def grades(request) -> Response:
    """The longer the reply, the better."""
    text = question(request)
    reply = text[text.index("The reply:") :]
    return completion(f"Score: {min(10, len(reply.splitlines()[2]))}")


def test_a_scorer_gives_each_completion_its_score(httpserver, scorer):
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(grades)
    groups = [Group("p", ("four", "sevenxx")), Group("q", ("one", "four", "four"))]
    assert scorer()(groups) == [(4.0, 7.0), (3.0, 4.0, 4.0)]
    assert len(httpserver.log) == 4
    assert scorer()(groups[1:]) == [(3.0, 4.0, 4.0)]
    assert len(httpserver.log) == 4


def test_a_scorer_refuses_what_is_no_score(httpserver, scorer):
    httpserver.expect_request("/v1/chat/completions").respond_with_json(json.loads(completion("It is nice.").data))
    groups = [Group("p", ("one", "two"), provenance={"source": "data.jsonl:3"})]
    with pytest.raises(
        JudgeError, match=r"2 of 2 answers of m are no score.*data\.jsonl:3, completion 1: no verdict in it"
    ):
        scorer()(groups)


def test_a_scorer_says_what_its_numbers_depend_on(scorer):
    first = scorer().identity()
    assert first == scorer(max_calls=5, timeout=1.0, retries=0, concurrency=9, api_key_env="PATH").identity()
    assert first != scorer(model="n").identity()
    assert first != scorer(prompt="dialogue").identity()
    json.dumps(first)


def test_a_scorer_is_pointwise(scorer):
    with pytest.raises(ConfigError, match=r"judge\.kind is pairwise: .*set it to pointwise"):
        scorer(kind="pairwise")


def test_an_answer_is_json_values():
    assert Answer(**json.loads(json.dumps(Answer("a", "stop").as_dict()))) == Answer("a", "stop")
