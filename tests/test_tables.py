"""The table of results: nothing is cut, whatever the width of a pipe, and the decimals fit the interval."""

import io

from rich.console import Console

from exoalign.tables import interval, result_tables

ESTIMATE = {"mean": -12.345, "low": -23.456, "high": 10.123}
METRICS = {
    "base": {"reward": ESTIMATE, "length": ESTIMATE},
    "aligned": {"reward": ESTIMATE, "kl": ESTIMATE, "kl_exact": ESTIMATE, "length": ESTIMATE},
    "difference": {"reward": ESTIMATE},
    "prompts": 32,
    "completions_per_prompt": 4,
}


def printed(metrics, warnings=()) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=40, highlight=False)
    result_tables({"metrics": metrics, "warnings": list(warnings), "model": "m", "report": "r"}, console)
    return stream.getvalue()


def test_nothing_is_cut_in_a_pipe():
    text = printed(METRICS)
    assert "…" not in text
    assert text.count("-12 [-23, 10]") == 7
    assert "32 held-out prompts x 4 completions" in text


def test_decimals_follow_the_width_of_the_interval():
    assert interval({"mean": 0.5894, "low": 0.5312, "high": 0.6499}) == "0.59 [0.53, 0.65]"
    assert interval({"mean": 1.5, "low": 1.5, "high": 1.5}) == "1.50 [1.50, 1.50]"
    assert interval(None) == ""


def test_of_which_groups_a_loss_is():
    drawn = {"loss_before": 0.7, "loss_after": 0.5, "groups": 512, "of": 2000}
    text = printed({"train": drawn, "heldout": {**drawn, "groups": 32, "of": 32}})
    assert [line.split("0.7000")[0].split() for line in text.splitlines() if "0.7000" in line] == [
        ["training", "512", "of", "2000"],
        ["held", "out", "32"],
    ]


def test_warnings_are_inert():
    assert "[/foo] \\x1b[31m" in printed(METRICS, ["[/foo] \x1b[31m"])
