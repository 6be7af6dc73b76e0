"""The stages of a chain on the page: what each tells in its summary is there, as data, and what is malformed is named."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from test_page import ATTACK, EMPTY, SHOWN, Page, schemes
from test_page import test_headings_descend_without_a_gap_and_ids_are_unique as headings_and_ids

from exoalign.errors import DataError
from exoalign.report import write_page
from exoalign.report.finding import Estimate
from exoalign.report.stage_views import label, shown, stage_view

NAMES = ["sft", "reward_model", "sample", "reward", "judge", "align", "evaluate"]


def view(summary: Any, **more: Any) -> dict[str, Any]:
    return stage_view(0, {"name": "sft", "seconds": 1.0, "state": "done", "what": "", "summary": summary, **more})


def lines(*series: tuple[str, list[Any], list[Any]], **more: Any) -> dict[str, Any]:
    named = [{"name": name, "x": xs, "y": ys} for name, xs, ys in series]
    return {"curves": [{"title": "t", "x_label": "x", "y_label": "y", "series": named, **more}]}


def values(**series: list[Any]) -> dict[str, Any]:
    named = [{"name": name, "values": found} for name, found in series.items()]
    return {"histograms": [{"title": "t", "x_label": "x", "series": named}]}


def spec(summary: dict[str, Any]) -> dict[str, Any]:
    (figure,) = view(summary)["figures"]
    return figure.spec


# What it shows


def test_every_stage_is_shown_in_order_with_all_it_tells(tmp_path: Path, chain_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **chain_run))
    assert "Stages" in page.text
    section = page.text[page.text.index("The stages") : page.text.index("Read first")]
    places = [section.index(f" {place} {name} ") for place, name in enumerate(NAMES, 1)]
    assert places == sorted(places)
    for stage in chain_run["stages"]:
        assert stage["what"] in section
        for row in stage["summary"].get("numbers", []):
            assert row["label"] in section
            assert row.get("note", "") in section
        for part in ("curves", "histograms", "texts"):
            for plot in stage["summary"].get(part, []):
                assert plot["title"] in section
        for texts in stage["summary"].get("texts", []):
            for row in texts["rows"]:
                assert f"{' '.join(row['label'].split())} {row['text'].strip()}" in section
    assert "done · 1 min 20 s" in section
    assert "held-out accuracy 240 pairs 0.61 [0.55, 0.67]" in section
    assert "Below the diagonal the model is too sure." in section


def test_the_stages_are_told_once(tmp_path: Path, chain_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **chain_run))
    assert page.text.count("Bradley-Terry on 960 pairs") == 1


def test_a_page_without_summaries_has_the_table_of_stages_and_no_section(
    tmp_path: Path, reward_run: dict[str, Any]
) -> None:
    for stage in reward_run["stages"]:
        stage["summary"] = None
    reward_run["stages"][0]["summary"] = {}
    page = Page(write_page(tmp_path / "report.html", **reward_run))
    assert "The stages" not in page.text
    assert "#stages" not in page.attributes("href")
    assert "Stage What State Time sample 64 prompts x 8 completions done 1 min 20 s" in page.text


def test_a_stage_without_a_summary_stands_among_those_that_have_one(tmp_path: Path, chain_run: dict[str, Any]) -> None:
    del chain_run["stages"][2]["summary"]
    page = Page(write_page(tmp_path / "report.html", **chain_run))
    assert "3 sample 256 prompts x 8 completions done · 4 min 00 s" in page.text
    folded = [attributes.get("id") for tag, attributes in page.elements if tag == "details" and "id" in attributes]
    assert "stage-2" in folded
    assert "stage-3" not in folded


def test_headings_and_ids_of_a_chain_are_in_order(tmp_path: Path, chain_run: dict[str, Any]) -> None:
    headings_and_ids(tmp_path, chain_run)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1500, "1,500"),
        (-3, "−3"),
        (0, "0"),
        (True, None),
        (221.3, "221"),
        (0.0371, "0.0371"),
        (1e-6, "1e−6"),
        (-2.5e-5, "−2.5e−5"),
        (3e20, "3e+20"),
        (math.nan, "–"),
        (math.inf, "–"),
        (10**400, "–"),
        (None, "–"),
        ("transformers", "transformers"),
        ({"mean": 0.61, "low": 0.55, "high": 0.67}, "0.61 [0.55, 0.67]"),
        ({"mean": -0.0204, "low": -0.0301, "high": -0.0107}, "−0.020 [−0.030, −0.011]"),
        ({"mean": 1234.5, "low": 1100.0, "high": 1400.0}, "1,234 [1,100, 1,400]"),
        ({"mean": 0.61, "low": None, "high": math.nan}, "0.610"),
        ({"mean": math.nan, "low": 0.1, "high": 0.2}, "–"),
    ],
)
def test_numbers_read_as_people_write_them(value: Any, text: str | None) -> None:
    summary = {"numbers": [{"label": "n", "value": value}]}
    if text is None:
        with pytest.raises(DataError):
            view(summary)
    else:
        assert view(summary)["numbers"][0]["value"] == text


def test_an_interval_of_width_0_is_shown() -> None:
    assert shown(Estimate(1.0, 1.0, 1.0)) == "1.00 [1.00, 1.00]"


# Plots


def test_a_curve_holds_its_values_and_gaps() -> None:
    found = spec(lines(("a", [1, 2, 3], [0.5, math.nan, None]), ("b", [2], [7])))
    assert [trace["y"] for trace in found["data"]] == [[0.5, None, None], [7.0]]
    assert [trace["x"] for trace in found["data"]] == [[1, 2, 3], [2]]
    assert found["layout"]["showlegend"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_line_of_x_equal_to_y_is_one_to_compare_with() -> None:
    measured, diagonal = spec(lines(("measured", [0.2, 0.8], [0.3, 0.7]), ("perfect", [0, 1], [0, 1])))["data"]
    assert (measured["mode"], measured["line"]["color"]) == ("lines+markers", "var(--aligned)")
    assert (diagonal["mode"], diagonal["line"]["color"], diagonal["line"]["dash"]) == ("lines", "var(--muted)", "dot")


def test_a_diagonal_alone_is_what_was_measured() -> None:
    assert spec(lines(("measured", [0.2, 0.8], [0.2, 0.8])))["data"][0]["line"]["color"] == "var(--aligned)"


def test_steps_are_whole_and_probabilities_are_not() -> None:
    assert spec(lines(("a", [1, 2, 3], [1, 1, 1])))["layout"]["xaxis"]["dtick"] == 1
    assert "dtick" not in spec(lines(("a", [0.0, 0.5, 1.0], [1, 1, 1])))["layout"]["xaxis"]
    assert "dtick" not in spec(lines(("a", [1, 200], [1, 1])))["layout"]["xaxis"]


def test_names_at_an_axis_are_categories_though_they_look_like_numbers() -> None:
    found = spec(lines(("a", ["10", "2", "65 and more than that"], [1, 2, 3])))
    assert found["layout"]["xaxis"]["type"] == "category"
    assert found["layout"]["xaxis"]["tickvals"] == found["data"][0]["x"] == ["10", "2", "65 and more than that"]
    assert found["layout"]["xaxis"]["ticktext"] == ["10", "2", "65 and more<br>than that"]
    assert found["layout"]["xaxis"]["tickangle"] == 0


def test_each_value_is_counted_once_in_its_series() -> None:
    before, after = [index / 10 for index in range(20)], [0.55] * 30 + [math.nan, None]
    found = spec(values(before=before, after=after))
    assert [sum(count for _, count in trace["customdata"]) for trace in found["data"]] == [20, 30]
    assert [sum(trace["y"]) for trace in found["data"]] == pytest.approx([1.0, 1.0])
    (peak,) = [x for x, y in zip(found["data"][1]["x"], found["data"][1]["y"], strict=True) if y]
    assert abs(peak - 0.55) <= 0.05
    assert found["layout"]["showlegend"]
    assert not spec(values(one=before))["layout"]["showlegend"]


def test_what_holds_no_value_is_not_drawn() -> None:
    assert view(lines(("a", [1], [math.nan])) | values(a=[None], b=[]))["figures"] == []
    assert view(lines() | {"histograms": []})["figures"] == []
    assert view({"texts": [{"title": "none", "rows": []}]})["texts"] == []
    found = spec(lines(("a", [1], [math.nan]), ("b", [None, None], [1, 2])))
    assert [trace["name"] for trace in found["data"]] == ["b"]


def test_models_keep_their_colours_and_lines_can_be_told_apart() -> None:
    def looks(*names: str) -> list[tuple[str, str]]:
        found = spec(lines(*((name, [1, 2], [3, 4]) for name in names)))
        return [(trace["line"]["color"], trace["line"]["dash"]) for trace in found["data"]]

    assert looks("x", "aligned", "base")[1:] == [("var(--aligned)", "solid"), ("var(--base)", "solid")]
    assert len(set(looks("x", "aligned", "base"))) == 3
    assert len(set(looks(*"abcdefghijkl"))) == 12


def test_all_figures_of_a_chain_are_valid_plotly_in_known_colours(chain_run: dict[str, Any]) -> None:
    views = [stage_view(index, stage) for index, stage in enumerate(chain_run["stages"])]
    figures = [figure for one in views for figure in one["figures"]]
    assert len(figures) == 12
    for figure in figures:
        go.Figure(figure.spec)
    used = set(re.findall(r"var\(--([a-z-]+)\)", json.dumps([figure.spec for figure in figures])))
    assert {"plum", "leaf", "muted"} <= used
    for colours in schemes().values():
        assert used <= set(colours)


def test_long_names_are_cut_to_what_fits() -> None:
    assert label("my_package.rewards:a_rather_long_name_of_a_function") == "my_package.rewards:a_rather_long_name_o…"
    assert label("predicted probability that the chosen one is preferred", lines=2) == (
        "predicted probability that the chosen<br>one is preferred"
    )
    assert label("a\nb") == "a b"
    assert label("") == ""


def test_labels_stand_over_their_texts_where_one_is_long() -> None:
    def over(*labels: str) -> bool:
        rows = [{"label": label, "text": " a text"} for label in labels]
        (texts,) = view({"texts": [{"title": "t", "rows": rows}]})["texts"]
        assert texts["rows"] == [(label, "a text") for label in labels]
        return bool(texts["over"])

    assert not over("0.123", "-1.5")
    assert over("0.123", "Write a short review of a film.")


# Data stays data


def attacked() -> dict[str, Any]:
    curve = {"x_label": ATTACK, "y_label": ATTACK, "series": [{"name": ATTACK, "x": [ATTACK, "b"], "y": [1, 2]}]}
    histogram = {"x_label": ATTACK, "series": [{"name": ATTACK, "values": [1]}, {"name": "b", "values": [2]}]}
    return {
        "numbers": [{"label": ATTACK, "value": ATTACK, "note": ATTACK}],
        "curves": [{"title": ATTACK, "note": ATTACK, **curve}],
        "histograms": [{"title": ATTACK, "note": ATTACK, **histogram}],
        "texts": [{"title": ATTACK, "rows": [{"label": ATTACK, "text": ATTACK}]}],
    }


def test_injected_text_is_shown_and_runs_nowhere(tmp_path: Path) -> None:
    stage = {"name": ATTACK, "seconds": 1.0, "state": ATTACK, "what": ATTACK, "summary": attacked()}
    page = Page(write_page(tmp_path / "report.html", **(EMPTY | {"stages": [stage]})))
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    # name, state, what, number 3, plots 2 x 2, texts 3
    assert page.text.count(SHOWN) == 13
    assert "\x1b" not in page.text
    assert len(page.figures()) == 2
    written = json.dumps(page.figures(), ensure_ascii=False).replace("<br>", "")
    assert "&lt;script&gt;" in written
    assert "<" not in written.replace("<extra>", "")
    assert "\x1b" not in written


# What is malformed


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ([], [], "summary: expected a mapping, found []"),
        ([], "text", "summary: expected a mapping, found 'text'"),
        (["numbers"], None, "summary.numbers: expected a list, found None"),
        (["number"], [], "summary.number: this key is not known, found []"),
        (["numbers", 0, "label"], 3, "summary.numbers[0].label: expected a text, found 3"),
        (["numbers", 0], {"label": "n"}, "summary.numbers[0].value: this key is missing, found {'label': 'n'}"),
        (
            ["numbers", 0, "value"],
            [1],
            "summary.numbers[0].value: expected a number, a text or {mean, low, high}, found [1]",
        ),
        (
            ["numbers", 0, "value"],
            {"mean": 1, "hight": 2},
            "summary.numbers[0].value: expected a number, a text or {mean, low, high}, found {'mean': 1, 'hight': 2}",
        ),
        (["curves", 0, "series", 0, "y", 1], "x", "summary.curves[0].series[0].y[1]: expected a number, found 'x'"),
        (
            ["curves", 0, "series", 0, "y"],
            [1],
            "summary.curves[0].series[0]: found 2 x and 1 y; expected as many of both",
        ),
        (
            ["curves", 0, "series", 0, "x", 0],
            "a",
            "summary.curves[0].series[0]: found numbers and names among the x; expected one kind",
        ),
        (
            ["histograms", 0, "series", 0, "values"],
            ["a", "b"],
            "summary.histograms[0].series[0].values[0]: expected a number, found 'a' (and 1 more)",
        ),
        (["texts", 0, "rows", 0, "text"], None, "summary.texts[0].rows[0].text: expected a text, found None"),
    ],
)
def test_a_malformed_summary_is_named_by_stage_and_key(
    tmp_path: Path, place: list[Any], value: Any, message: str
) -> None:
    summary: Any = lines(("a", [1, 2], [3, 4])) | values(a=[1])
    summary |= {"numbers": [{"label": "n", "value": 1}], "texts": [{"title": "t", "rows": [{"label": "", "text": ""}]}]}
    broken = {"summary": copy.deepcopy(summary)}
    spot: Any = broken
    for key in ["summary", *place][:-1]:
        spot = spot[key]
    spot[["summary", *place][-1]] = value
    stages = [{"name": "sft", "summary": summary}, {"name": "judge", **broken}]
    with pytest.raises(DataError) as error:
        write_page(tmp_path / "report.html", **(EMPTY | {"stages": stages}))
    assert str(error.value) == f"the stage 'judge': {message}"
    assert list(tmp_path.iterdir()) == []
