"""The comparison's page as a file: what it says, what it refuses, and that all in it is inert."""

import json
import math
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from comparison_example import METHODS, around, make_comparison
from test_page import HERE, luminance

from exoalign.errors import DataError
from exoalign.report.compare_curves import cost_figures, history_figures, learning_figures, variance_figures
from exoalign.report.compare_data import ComparisonView, read_comparison
from exoalign.report.compare_figures import COLOURS, PATHS, SYMBOLS, frontier_figure, symbol
from exoalign.report.compare_page import finite_only, write_compare_page
from exoalign.report.compare_rates import rating_figure, win_matrix
from exoalign.report.compare_tables import against_tables, finding, method_rows, search_tables
from exoalign.report.figures import Figure


def figures(view: ComparisonView) -> list[Figure]:
    found = [frontier_figure(view), win_matrix(view), rating_figure(view)]
    curves = cost_figures(view) + learning_figures(view) + history_figures(view) + variance_figures(view)
    return [figure for figure in [*found, *curves] if figure]


def small(**more: Any) -> dict[str, Any]:
    methods = [{"name": "exo", "label": "EXO"}, {"name": "dpo", "label": "DPO"}]
    return {"title": "small", "methods": methods, "runs": []} | more


def frontier(method: str, area: float) -> dict[str, Any]:
    return {"method": method, "kl": [0, 1], "reward": [0, area], "area": around(area, 0.1), "up_to": 1.5}


def point(step: int, reward: float, kl: float) -> dict[str, Any]:
    return {"step": step, "reward": around(reward, 0.01), "kl": around(kl, 0.01), "seconds": 90.0, "tokens": 1234}


def test_all_figures_are_valid_plotly_in_known_colours() -> None:
    found = figures(read_comparison(make_comparison(samples=60)))
    names = ["frontier-plot", "win-matrix", "rating", "reward-seconds", "reward-tokens", "reward-step", "kl-step"]
    names += ["length-reward", "history-loss", "history-policy_reward", "history-grad_norm"]
    assert [figure.id for figure in found] == [*names, "gradient-variance", "gradient-cosine"]
    css = (HERE / "style.css").read_text("utf-8") + (HERE / "compare.css").read_text("utf-8")
    for figure in found:
        text = json.dumps(figure.spec, allow_nan=False)
        for colour in set(re.findall(r"var\((--[a-z0-9-]+)\)", text)):
            assert len(re.findall(rf"{colour}: #[0-9a-f]{{6}};", css)) == 2, colour
        go.Figure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", text)))


def test_method_colours_stand_out_from_the_ground() -> None:
    css, style = (HERE / "compare.css").read_text("utf-8"), (HERE / "style.css").read_text("utf-8")
    grounds = re.findall(r"--page: (#[0-9a-f]{6});", style)
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    for ground, block in zip(grounds, blocks, strict=True):
        colours = dict(re.findall(r"--(method-\d+): (#[0-9a-f]{6});", block))
        assert len(set(colours.values())) == COLOURS
        for colour in colours.values():
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_each_marker_has_a_path_and_the_thirteenth_method_another_one() -> None:
    assert set(PATHS) == set(SYMBOLS)
    assert len(set(SYMBOLS)) == 12
    assert symbol(12) != symbol(0)


def test_the_page_holds_the_comparison_as_it_is(tmp_path: Path) -> None:
    comparison = make_comparison(samples=60)
    page = write_compare_page(tmp_path / "page.html", comparison).read_text("utf-8")
    found = re.search(r'<script type="application/json" id="comparison">(.*?)</script>', page, re.DOTALL)
    assert found
    assert json.loads(found[1]) == comparison
    assert "://" not in re.sub(r"<script nonce.*?</script>", "", page, flags=re.DOTALL)


def test_numbers_that_are_not_finite_are_null() -> None:
    assert finite_only({"a": [math.nan, 1.5, math.inf], 2: (1, "x", None, True)}) == {
        "a": [None, 1.5, None],
        "2": [1, "x", None, True],
    }


@pytest.mark.parametrize("key", [k for k in make_comparison(samples=0) if k not in ("title", "methods", "runs")])
def test_every_other_key_may_be_absent(tmp_path: Path, key: str) -> None:
    comparison = make_comparison(samples=40)
    del comparison[key]
    assert write_compare_page(tmp_path / "page.html", comparison).is_file()


def test_one_method_without_a_run_makes_a_page(tmp_path: Path) -> None:
    page = write_compare_page(
        tmp_path / "page.html", {"title": "new", "methods": [{"name": "exo", "label": "EXO"}], "runs": []}
    )
    text = page.read_text("utf-8")
    assert "No run has been evaluated yet." in text
    assert "plotly.js v" not in text


# What it says.


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (around(0.2, 0.1), "EXO gains the most reward up to a KL of 1.5 nats, clearly ahead of DPO: 0.20 more on average"
                           " (95% interval 0.10 to 0.30)."),
        (around(0.2, 0.3), "EXO gains the most reward up to a KL of 1.5 nats, but not clearly more than DPO: 0.20 more on"
                           " average (95% interval −0.10 to 0.50)."),
        ({"mean": 0.2}, "EXO gains the most reward up to a KL of 1.5 nats, 0.200 more than DPO; no interval was computed."),
        (None, "EXO gains the most reward up to a KL of 1.5 nats, before DPO."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_the_finding_claims_what_the_interval_carries(difference: Any, expected: str, turned: bool) -> None:
    pair = {"a": "exo", "b": "dpo", "area": difference}
    if turned and difference is not None:
        ends = {"mean": -difference["mean"]}
        if "low" in difference:
            ends |= {"low": -difference["high"], "high": -difference["low"]}
        pair = {"a": "dpo", "b": "exo", "area": ends}
    found = small(frontiers=[frontier("dpo", 0.3), frontier("exo", 0.5)], difference=[pair])
    assert finding(read_comparison(found)) == expected


def test_the_interval_over_seeds_decides_where_there_is_one() -> None:
    pair = {"a": "exo", "b": "dpo", "area": around(0.2, 0.1), "area_with_seeds": around(0.2, 0.3)}
    found = small(frontiers=[frontier("dpo", 0.3), frontier("exo", 0.5)], difference=[pair])
    assert "not clearly more than DPO" in finding(read_comparison(found))


def test_a_finding_that_is_given_is_shown() -> None:
    assert finding(read_comparison(small(finding="up to 2 nats all are alike."))) == "Up to 2 nats all are alike."


def test_the_row_of_a_method_is_of_its_best_point() -> None:
    # reward - beta KL: 0.5 - 0.5 * 0.2 = 0.4 beats 0.9 - 0.5 * 2 = -0.1
    runs = [{"method": "exo", "seed": 0, "beta": 0.5, "points": [point(10, 0.5, 0.2), point(20, 0.9, 2.0)]}]
    exo, dpo = method_rows(read_comparison(small(runs=runs)))
    assert exo["cells"][:6] == ["0.500 [0.490, 0.510]", "0.200 [0.190, 0.210]", "0.5", "10", "1 min 30 s", "1,234"]
    assert (exo["runs"], exo["area"]) == (1, "–")
    assert dpo["cells"] == ["–"] * 9


def test_a_method_without_beta_is_held_to_that_of_the_others() -> None:
    # Best-of-N: 0.5 - 0.5 * 0.2 = 0.4 beats 0.9 - 0.5 * 2 = -0.1; with a beta of 0 it would not
    runs = [
        {"method": "exo", "beta": 0.5, "points": [point(1, 0.1, 0.1)]},
        {"method": "dpo", "beta": None, "points": [point(4, 0.5, 0.2), point(64, 0.9, 2.0)]},
    ]
    assert method_rows(read_comparison(small(runs=runs)))[1]["cells"][3] == "4"


def test_the_exact_kl_is_the_place_of_a_point() -> None:
    found = point(10, 0.5, 0.2) | {"kl_exact": around(0.3, 0.01)}
    figure = frontier_figure(read_comparison(small(runs=[{"method": "exo", "points": [found]}])))
    assert figure
    assert figure.spec["data"][0]["x"] == [0.3]


def test_win_rates_are_told_by_what_they_are_against_and_who_judged() -> None:
    rate = {"model": "exo", "other": "sft", "by": "judge", "rate": around(0.6, 0.1), "ties": 3, "invalid": 2}
    other = {"model": "exo", "other": "chosen", "by": "reward", "rate": around(0.4, 0.1), "length_controlled": None}
    found = against_tables(read_comparison(small(win_rates={"against": [rate, other]})))
    assert [table["label"] for table in found] == [
        "Against the SFT model, by judge",
        "Against the chosen replies, by reward",
    ]
    assert found[0]["rows"] == [["EXO", "0.60 [0.50, 0.70]", "–", "3", "2"]]
    assert found[1]["rows"] == [["EXO", "0.40 [0.30, 0.50]", "–", "–", "–"]]


def test_a_trial_that_failed_has_no_objective() -> None:
    trials = [{"settings": {"learning_rate": 1e-5}, "objective": None}, {"settings": {"beta": 0.5}, "objective": 0.25}]
    (table,) = search_tables(read_comparison(small(search=[{"method": "exo", "trials": trials}])))
    assert table["keys"] == ["learning_rate", "beta"]
    assert [(row["cells"], row["objective"]) for row in table["rows"]] == [
        (["1e-05", "–"], "–"),
        (["–", "0.5"], "0.250"),
    ]


def test_a_long_history_is_drawn_as_means() -> None:
    # 80 steps in 40 parts: the first is the mean of steps 1 and 2, told at step 2; what is not finite does not count
    history = [{"step": step, "loss": math.nan if step == 3 else float(step)} for step in range(1, 81)]
    (figure,) = history_figures(read_comparison(small(runs=[{"method": "exo", "history": history}])))
    (trace,) = figure.spec["data"]
    assert (trace["x"][:3], trace["y"][:3], len(trace["x"])) == ([2, 4, 6], [1.5, 4.0, 5.5], 40)


def test_runs_without_a_history_are_no_learning_curves() -> None:
    comparison = read_comparison(make_comparison(samples=0))
    names = [trace["name"] for trace in learning_figures(comparison)[0].spec["data"]]
    assert names == [label for name, label, _ in METHODS if name != "best_of_n"]


def test_labels_are_inert_in_figures() -> None:
    comparison = make_comparison(samples=0)
    comparison["methods"][0]["label"] = "<a href='javascript:x'>E</a>"
    for figure in figures(read_comparison(comparison)):
        assert "<a" not in json.dumps(figure.spec)


# What it refuses.


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"title": 1}, "comparison.title: expected a text, found 1"),
        ({"runs": None}, "comparison.runs: expected a list, found None"),
        ({"runs": [{"method": "ppo"}]}, "runs[0].method: found 'ppo'; expected one of ['exo', 'dpo']"),
        ({"runs": [{"method": "exo", "points": [{}]}]}, "comparison.runs[0].points[0].step: this key is missing"),
        (
            {"runs": [{"method": "exo", "points": [{"step": 1, "reward": 0.5}]}]},
            "comparison.runs[0].points[0].reward: expected {mean, low, high}, found 0.5",
        ),
        (
            {"runs": [{"method": "exo", "points": [{"step": 1, "reward": {"mean": "x"}}]}]},
            "comparison.runs[0].points[0].reward: expected numbers, found 'x' at 'mean'",
        ),
        (
            {"frontiers": [{"method": "exo", "kl": [0, 1], "reward": [0]}]},
            "comparison.frontiers[0]: found lists of the lengths [2, 1]; expected kl, reward, low and high of one length",
        ),
        (
            {"win_rates": {"models": ["exo"], "matrix": [[None, None]]}},
            "comparison.win_rates: found rows of [2] cells for 1 models; expected a square matrix",
        ),
        (
            {"samples": [{"prompt": "p", "rows": [{"method": "exo", "text": None}]}]},
            "comparison.samples[0].rows[0].text: expected a text, found None",
        ),
        ({"methods": [{"name": "exo"}] * 2}, "methods: found the names ['exo', 'exo']; expected each once"),
    ],
)
def test_malformed_input_is_refused_with_its_key(tmp_path: Path, wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as error:
        write_compare_page(tmp_path / "page.html", small() | wrong)
    assert expected in str(error.value)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("key", ["title", "methods", "runs"])
def test_what_must_be_there_is_missed(tmp_path: Path, key: str) -> None:
    comparison = small()
    del comparison[key]
    with pytest.raises(DataError, match=rf"^comparison\.{key}: this key is missing"):
        write_compare_page(tmp_path / "page.html", comparison)
