"""Preferences and labelled texts for reward models: what is read, refused, split and told."""

import json

import pytest

from exoalign import Group
from exoalign.config_reward_model import RewardModelSection
from exoalign.data.labelled import stream_labelled
from exoalign.data.reward_data import as_ranking, reward_data
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source
from exoalign.errors import DataError

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(tmp_path, rows, *, side="train", seed=0, **settings):
    data = settings.pop("data", {})
    section = RewardModelSection.model_validate(
        {"data": {"train": str(write(tmp_path / "d.jsonl", *rows)), **data}, **settings}
    )
    return reward_data(section, side, seed=seed, cache=tmp_path / "cache")


class TestLabelled:
    def test_a_text_is_a_completion_and_its_label_the_reward(self, tmp_path):
        aside = SetAside()
        path = write(
            tmp_path / "d.jsonl",
            {"text": "a gem", "label": 1},
            {"text": " ", "label": 0},
            {"text": "no", "label": False, "id": 3},
        )
        first, second = stream_labelled(Source(str(path)), aside)
        assert (first.prompt, first.completions, first.rewards, first.where) == ("", ("a gem",), (1.0,), f"{path}:1")
        assert second.rewards == (0.0,)
        assert aside.lines() == [f"1 row set aside: a text is empty ({path}:2)"]
        assert dict(aside.unread) == {"id": 1}
        assert len(list(stream_labelled(Source(str(path)), SetAside(), limit=1))) == 1

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "a"}, r"d\.jsonl:1: no `label`; found columns text; a classifier learns from `text, label`"),
            (PAIR, r"d\.jsonl:1: no `text`; found columns chosen, prompt, rejected; .*kind `ranking` on pairs"),
            ({"text": "a", "label": -1}, r"d\.jsonl:1: `label` is '-1'; expected 0 or 1"),
            ({"text": "a", "label": "pos"}, r"`label` is 'pos'; expected 0 or 1"),
            ({"text": 3, "label": 1}, r"`text` is int; expected text"),
        ],
    )
    def test_rows_that_are_not_so_are_refused_with_their_place(self, tmp_path, row, message):
        with pytest.raises(DataError, match=message):
            list(stream_labelled(Source(str(write(tmp_path / "d.jsonl", row))), SetAside()))

    def test_real_reviews_come_with_their_labels(self, shared_data):
        for adapter in (None, "rt_polarity", "imdb"):
            source = Source(str(shared_data / "rt_polarity_train.jsonl.gz"), adapter)
            groups = list(stream_labelled(source, SetAside(), limit=200))
            assert {group.rewards for group in groups} == {(0.0,), (1.0,)}
            assert groups[0].completions[0].startswith("though the film's scenario is certainly not earthshaking")


class TestRewardData:
    def test_pairs_come_as_words(self, tmp_path):
        found = read(tmp_path, [PAIR, {**PAIR, "prompt": "q"}])
        assert [(group.prompt, group.completions, group.winner) for group in found.groups] == [
            ("p", ("good", "bad"), 0),
            ("q", ("good", "bad"), 0),
        ]
        assert found.groups[0].prompt_ids is None
        assert found.made_from["count"] == 2
        assert found.notes == []

    def test_what_it_is_made_from_tells_other_data_and_other_settings(self, tmp_path):
        first = read(tmp_path, [PAIR]).made_from
        assert read(tmp_path, [PAIR]).made_from == first
        assert json.loads(json.dumps(first)) == first
        assert read(tmp_path, [{**PAIR, "chosen": "other"}]).made_from != first

    def test_rankings_become_rewards_and_ties_are_told(self, tmp_path):
        rows = [
            {"prompt": "p", "completions": ["a", "b"], "rewards": [1, 1]},
            {"prompt": "q", "completions": ["a", "b"], "rewards": [1, 2]},
        ]
        found = read(tmp_path, rows)
        assert found.notes == ["1 of 2 groups have only ties, from which nothing is learnt"]
        with pytest.raises(DataError, match="all completions of every group are tied"):
            read(tmp_path, rows[:1])

    def test_a_margin_must_be_in_the_data(self, tmp_path):
        assert read(tmp_path, [{**PAIR, "margin": 0.5}], margin=True).groups[0].rewards == (0.5, 0.0)
        with pytest.raises(DataError, match=r"d\.jsonl:1: `margin` needs pairs that say by how much"):
            read(tmp_path, [PAIR], margin=True)

    def test_a_share_of_the_prompts_is_held_out_and_of_labelled_texts_a_share_of_the_texts(self, tmp_path):
        pairs = [{**PAIR, "prompt": f"p{i % 40}"} for i in range(80)]
        texts = [{"text": f"t{i % 40}", "label": i % 2} for i in range(80)]
        for rows, kind in ((pairs, "ranking"), (texts, "classifier")):
            sides = [
                read(tmp_path, rows, side=side, kind=kind, data={"holdout": 0.3}).groups
                for side in ("train", "heldout")
            ]
            assert sum(map(len, sides)) == 80
            known = [{(g.prompt, *(g.completions if kind == "classifier" else ())) for g in side} for side in sides]
            assert all(known)
            assert not known[0] & known[1]
            assert 10 <= len(sides[1]) <= 40

    def test_without_an_evaluation_nothing_is_held_out(self, tmp_path):
        assert read(tmp_path, [PAIR], side="heldout") is None

    def test_a_group_that_compares_nothing_is_named(self, tmp_path):
        from exoalign.data.table import write_table

        path = tmp_path / "g.parquet"
        for group, message in (
            (Group("p", ("a",), rewards=(1.0,)), "found 1 completion, expected at least 2"),
            (Group("p", ("a", "b")), "has neither winner nor rewards; expected pairs"),
            (Group("p", ("a", "b", "c"), winner=1), "a winner among 3 completions; expected 2, or a reward for each"),
        ):
            write_table([group], path)
            section = RewardModelSection.model_validate({"data": {"train": str(path)}})
            with pytest.raises(DataError, match=message):
                reward_data(section, "train", seed=0, cache=tmp_path / "cache")

    def test_a_pair_as_a_ranking(self):
        assert as_ranking(Group("p", ("a", "b"), rewards=(3.0, 4.0), winner=0)).rewards == (1.0, 0.0)
        ranked = Group("p", ("a", "b"), rewards=(3.0, 4.0))
        assert as_ranking(ranked) is ranked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "classifier", "margin": True}, "`margin` has no effect with kind: classifier"),
        ({"kind": "classifier", "centring": 0.1}, "`centring` has no effect with kind: classifier"),
        (
            {"data": {"train": "a", "truncation": "drop"}},
            "`data.truncation` has no effect on a reward model, .*set `max_tokens`",
        ),
        ({"lora": {"quantize": "4bit"}}, "`lora.quantize` has no effect here"),
        ({"lora": {"dropout": 0.1}}, "`lora.dropout` has no effect while all dropout is off"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardModelSection.model_validate({"data": {"train": "a"}, **settings})
