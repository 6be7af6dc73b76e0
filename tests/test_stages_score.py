"""Scoring as a stage: what it writes, what it says of bad rewards, and that a kill costs nothing that was done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from exoalign.config_reward import RewardSection
from exoalign.data.formats import read_groups
from exoalign.data.sources import Source
from exoalign.data.table import read_table
from exoalign.errors import DataError, RewardError, StoreError
from exoalign.groups import Group
from exoalign.rewards.scorers import build_scorers, record_of
from exoalign.stages_score import read_statistics, score, score_alike

GROUPS = [
    Group("A", ("one", "one two", "one two three"), rewards=(9, 9, 9), provenance={"source": "g:1"}),
    Group("B", ("one", "two"), provenance={"source": "g:2"}),
]
BOTH = RewardSection.model_validate(
    {"scorers": [{"function": "length", "weight": 0.5}, {"function": "regex", "arguments": {"pattern": "three"}}]}
)


def stage(groups, section, folder, **settings):
    folder.mkdir(exist_ok=True)
    return score(groups, section, build_scorers(section), folder, show=False, **settings)


def test_each_scorer_has_its_column_and_rewards_are_their_sum(tmp_path):
    assert stage(GROUPS, BOTH, tmp_path) == "5 rewards, mean 1.000"  # (0.5 + 1 + 2.5 + 0.5 + 0.5) / 5
    first, second = read_table(tmp_path / "groups.parquet")
    assert first.scores == {"length": (1.0, 2.0, 3.0), "regex": (0.0, 0.0, 1.0)}
    assert first.rewards == (0.5, 1.0, 2.5)
    assert second.rewards == (0.5, 0.5)
    assert second.provenance["source"] == "g:2"


def test_the_summary_counts_what_there_is_to_learn(tmp_path):
    stage(GROUPS, BOTH, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    numbers = {number["label"]: number["value"] for number in summary["numbers"]}
    assert numbers["completions"] == 5
    assert numbers["length: mean"] == pytest.approx((1 + 2 + 3 + 1 + 1) / 5)
    assert numbers["length: spread within a prompt"] == pytest.approx(
        (2 / 3) ** 0.5 / 2
    )  # of the first; the second's is 0
    assert numbers["reward: prompts without spread"] == 0.5
    assert [histogram["title"] for histogram in summary["histograms"]] == ["reward", "length", "regex"]
    best, worst = summary["texts"]
    assert best["rows"][0] == {
        "label": "reward 2.5: length 3, regex 1 (g:1, completion 3)", "text": "A\n\none two three",
    }  # fmt: skip
    assert worst["rows"][0]["label"].startswith("reward 0.5: length 1, regex 0")


def test_histograms_hold_2000_values_at_most(tmp_path):
    groups = [Group(f"p{i}", ("a", "a b", "a b c")) for i in range(1500)]
    stage(groups, RewardSection(function="length"), tmp_path)
    (histogram,) = json.loads((tmp_path / "summary.json").read_text())["histograms"]  # the reward is the only column
    assert len(histogram["series"][0]["values"]) == 1500


@pytest.mark.parametrize("normalise", ["global", "group"])  # within its own group a model's mean would be 0
def test_an_evaluation_is_scaled_as_the_training_data_were(tmp_path, normalise):
    section = RewardSection.model_validate({"scorers": [{"function": "length"}], "normalise": normalise})
    stage([Group("A", ("a", "a b c"))], section, tmp_path)  # mean 2, deviation 1
    statistics = read_statistics(tmp_path)
    assert statistics == {"length": {"mean": 2.0, "std": 1.0}}
    others = [Group("B", ("a b c d e f g", "a b"))]
    (found,) = score_alike(others, section, build_scorers(section), tmp_path, statistics=statistics, show=False)
    assert found.rewards == (5.0, 0.0)
    plain = RewardSection(function="length")
    (found,) = score_alike(others, plain, build_scorers(plain), tmp_path, statistics=statistics, show=False)
    assert found.rewards == (7.0, 2.0)
    (tmp_path / "statistics.json").write_text("{")
    with pytest.raises(StoreError, match=r"statistics\.json is missing or damaged"):
        read_statistics(tmp_path)


def test_what_is_done_is_not_asked_for_again_and_no_other_groups_scores_are_taken(tmp_path):
    class Counting:
        name, together = "counting", 2

        def __init__(self):
            self.asked = []

        def identity(self):
            return {"counting": 1}

        def __call__(self, groups):
            self.asked.append([group.prompt for group in groups])
            if "stop" in [group.prompt for group in groups]:
                raise RewardError("stop")
            return [(1.0,) * group.k for group in groups]

    section = RewardSection.model_validate({"scorers": [{"function": "length", "name": "counting"}]})
    groups = [Group(name, ("a",)) for name in ("a", "b", "c", "d", "stop")]
    scorer = Counting()
    with pytest.raises(RewardError, match="stop"):
        score(groups, section, [scorer], tmp_path, show=False)
    assert scorer.asked == [["a", "b"], ["c", "d"], ["stop"]]
    with pytest.raises(RewardError, match="stop"):  # what was finished stays finished
        score(groups, section, [scorer], tmp_path, show=False)
    assert scorer.asked[3:] == [["stop"]]
    score([Group("a", ("a", "b")), *groups[1:4]], section, [scorer], tmp_path, show=False)
    assert scorer.asked[4:] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "raised ValueError at g:2 .*: no"),
        ("return [float('nan')] * len(completions)", "returned nan at g:2, completion 1"),
        ("return [1.0]", "returned 1 values at g:2 for 2 completions"),
    ],
)
def test_a_bad_reward_is_told_and_what_was_finished_stays(tmp_path, monkeypatch, body, message, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    module = f"bad_rewards_{abs(hash(request.node.nodeid))}"
    code = (
        "from pathlib import Path\n\n\ndef f(prompts, completions):\n"
        "    with open('asked', 'a') as file:\n        file.write(prompts[0])\n"
        f"    if prompts[0] == 'B' and not Path('mended').exists():\n        {body}\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / f"{module}.py").write_text(code)
    section = RewardSection(function=f"{module}:f")
    folder = tmp_path / "out"
    with pytest.raises(RewardError, match=f"^reward function {module}:f {message}"):
        stage(GROUPS, section, folder)
    assert not (folder / "groups.parquet").exists()
    (tmp_path / "mended").touch()
    stage(GROUPS, section, folder)
    assert (tmp_path / "asked").read_text() == "ABB"


def test_nothing_to_score_is_refused(tmp_path):
    with pytest.raises(DataError, match="no groups to score"):
        stage([], BOTH, tmp_path)


CHILD = """
import sys, time
from pathlib import Path
from exoalign.config_reward import RewardSection
from exoalign.groups import Group
from exoalign.rewards.scorers import build_scorers
from exoalign import stages_score

stages_score.KEPT_EVERY = 0.0
section = RewardSection.model_validate({"scorers": [
    {"function": "slow_length:slow"}, {"function": "repetition", "weight": 0.1}], "normalise": "global"})
groups = [Group(f"p{i}", ("a", "a b " * i, "c")) for i in range(60)]
stages_score.score(groups, section, build_scorers(section), Path(sys.argv[1]), show=False)
"""
SLOW = """
import time
def slow(prompts, completions):
    time.sleep(0.01)
    with open("calls", "a") as file:
        file.write(prompts[0] + "\\n")
    return [len(text) / 7 for text in completions]
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_while_scoring_it_ends_with_the_same_bytes(tmp_path):
    (tmp_path / "slow_length.py").write_text(SLOW)

    def run(folder: str) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", CHILD, folder], cwd=tmp_path)

    def calls() -> list[str]:
        file = tmp_path / "calls"
        return file.read_text().split() if file.exists() else []

    assert run("alone").wait(120) == 0
    assert len(calls()) == 60
    kills = 0
    for target in (62, 80, 100):  # of calls in both runs together, of which the first made 60
        child = run("killed")
        began = time.monotonic()
        while len(calls()) < target and child.poll() is None and time.monotonic() - began < 120:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "groups.parquet").exists()
    assert run("killed").wait(120) == 0
    assert kills == 3
    for name in ("groups.parquet", "statistics.json", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert len(calls()) <= 60 + 60 + kills  # one group at most was lost with each kill
    assert len(set(calls()[60:])) == 60


def test_real_groups(tmp_path, shared_data):
    """Replies of eight models: VADER's sentiment and the repetition of each, whatever stands in them."""
    groups, _ = read_groups(Source(str(shared_data / "alpaca_eval_k8.jsonl.gz"), "alpaca_eval"), limit=60)
    section = RewardSection.model_validate(
        {
            "scorers": [
                {"function": "sentiment"},
                {"function": "repetition", "weight": 2.0},
                {"function": "length", "clip": [-2.0, 2.0]},
            ],
            "normalise": "group",
        }
    )
    stage(groups, section, tmp_path)
    scored = read_table(tmp_path / "groups.parquet")
    assert [group.completions for group in scored] == [group.completions for group in groups]
    assert all(-1 <= value <= 0 for group in scored for value in group.scores["repetition"])
    assert all(
        len(text.split()) == value
        for group in scored
        for text, value in zip((c[0].content if not isinstance(c, str) else c for c in group.completions),
                               group.scores["length"], strict=True)
    )  # fmt: skip
    spread = [group for group in scored if len(set(group.scores["sentiment"])) > 1]
    assert len(spread) > 50


def test_a_record_says_what_rewards_depend_on_and_loads_no_model(tiny_folder):
    section = RewardSection.model_validate(
        {
            "scorers": [
                {"function": "length", "weight": 2.0},
                {"model": "trained"},
                {"model": str(tiny_folder), "name": "m"},
            ]
        }
    )
    record = record_of(section)
    assert record["columns"]["length"] == {"function": "length", "arguments": {}, "weight": 2.0, "clip": None}
    assert record["columns"]["trained"]["model"] == "trained"
    assert record["columns"]["m"]["model"] != str(tiny_folder)  # checksums of its files
    assert record == json.loads(json.dumps(record))
    with pytest.raises(RewardError, match="the run trains none"):
        build_scorers(RewardSection.model_validate({"scorers": [{"model": "trained"}]}))


def test_a_reward_model_is_a_scorer(tmp_path, tiny_folder, tiny_tokenizer):
    import torch
    from transformers import AutoConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_folder, num_labels=1)
    model: Path = tmp_path / "reward"
    LlamaForSequenceClassification(config).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    section = RewardSection.model_validate({"scorers": [{"model": "trained"}, {"function": "length", "weight": 0.0}]})
    score(GROUPS, section, build_scorers(section, trained=model), tmp_path, show=False)
    first, _ = read_table(tmp_path / "groups.parquet")
    assert first.rewards == first.scores["trained"]
    assert len(set(first.rewards)) == 3


def test_a_judge_is_a_column_beside_a_function(httpserver, tmp_path):
    """Its answers are kept: after a failure of another scorer none is asked for again."""
    answer = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Score: 7"}}]
    }
    httpserver.expect_request("/v1/chat/completions").respond_with_json(answer)
    judge = {"url": httpserver.url_for("/v1"), "model": "m", "kind": "pointwise"}
    section = RewardSection.model_validate({"scorers": [{"judge": judge, "weight": 0.5}, {"function": "length"}]})
    for _ in range(2):
        score(GROUPS, section, build_scorers(section), tmp_path, show=False)
        (tmp_path / "rows.sqlite").unlink()
    completions = [completion for group in GROUPS for completion in group.completions]
    assert len(httpserver.log) == len({(g.prompt, c) for g in GROUPS for c in g.completions}) <= len(completions)
    for group in read_table(tmp_path / "groups.parquet"):
        assert group.scores["judge"] == (7.0,) * group.k
        assert group.rewards == tuple(3.5 + words for words in group.scores["length"])


def test_a_judge_of_pairs_gives_no_numbers():
    with pytest.raises(ValidationError, match="pairwise, and a scorer gives each completion a number"):
        RewardSection.model_validate({"scorers": [{"judge": {"url": "http://localhost/v1", "model": "m"}}]})
