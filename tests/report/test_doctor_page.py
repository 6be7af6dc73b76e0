"""The doctor's page as HTML text: it says what was found, counts everything, and data stays data."""

import json
from pathlib import Path

import plotly.graph_objects as go
from test_page import ATTACK, Page

from exoalign.data.doctor.examine import examine
from exoalign.data.doctor.findings import Examination
from exoalign.data.formats import TextRow
from exoalign.data.set_aside import SetAside
from exoalign.errors import DataError
from exoalign.groups import Group
from exoalign.report.doctor_page import doctor_figures, write_doctor_page


def examined(source: str = "rows.jsonl", groups: int = 40, errors: tuple[str, ...] = ()) -> Examination:
    made = [
        Group(
            f"{'abcdefgh'[i % 8] * (i + 9)} {ATTACK if i == 7 else ''}",
            tuple("yes " * (j + i % 3 + 1) for j in range(3 + i % 2)),
            rewards=tuple(float(j + i % 5) for j in range(3 + i % 2)),
            provenance={"source": f"{source}:{i + 1}"},
        )
        for i in range(groups)
    ]
    aside = SetAside(read=groups + len(errors))
    for error in errors:
        aside.refuse(DataError(error), tolerate=True)
    return examine(made, aside, source=source)


def test_the_page_says_what_the_examination_says(tmp_path: Path) -> None:
    examination = examined(errors=("rows.jsonl:41: not JSON at column 3",))
    page = Page(write_doctor_page(tmp_path / "page.html", examination))
    assert "1 error, 3 warnings" in page.text  # ESC in a prompt, prompts of one letter, longer is better
    for finding in examination.findings:
        assert finding.text in page.text
        assert finding.remedy in page.text
    assert "line 41: not JSON at column 3" in page.text
    assert all(name in page.text and value in page.text for name, value in examination.lines())
    assert len(page.figures()) == 6
    assert [figure["data"][0]["y"] for figure in page.figures() if figure["data"][0]["x"] == ["3", "4"]] == [[20, 20]]


def test_the_histograms_count_everything_and_are_valid_plotly() -> None:
    figures = {figure.id: figure.spec for figure in doctor_figures(examined())}
    sums = {name: sum(figure["data"][0]["y"]) for name, figure in figures.items() if name.startswith("histogram-")}
    completions = 20 * 3 + 20 * 4
    assert sums == {
        "histogram-prompt": 40,
        "histogram-completion": completions,
        "histogram-k": 40,
        "histogram-rewards": completions,
        "histogram-ess": 40,
    }
    for spec in figures.values():
        json.dumps(spec, allow_nan=False)
        go.Figure(spec)


def test_a_page_of_nothing(tmp_path: Path) -> None:
    page = Page(write_doctor_page(tmp_path / "page.html", examine([], SetAside())))
    assert "no row can be used" in page.text
    assert page.figures() == []


def test_a_page_of_texts_speaks_of_texts(tmp_path: Path) -> None:
    texts = [TextRow("one two", "x:1"), TextRow("three", "x:2")]
    page = Page(write_doctor_page(tmp_path / "page.html", examine(texts, SetAside())))
    assert "Length of texts" in page.text
    assert "Different texts 2" in page.text
    assert "completions" not in page.text
    assert [figure["data"][0]["y"] for figure in page.figures()] == [[1, 1]]


def test_the_data_stays_data(tmp_path: Path) -> None:
    path = write_doctor_page(tmp_path / "page.html", examined(source=ATTACK, errors=(f"x:1: {ATTACK}",)))
    page = Page(path)
    assert "img" not in [tag for tag, _ in page.elements]
    assert len([1 for attributes, _ in page.scripts if attributes.get("type") != "application/json"]) == 2
    assert "\x1b" not in path.read_text(encoding="utf-8")
    assert [value for value in page.attributes("src") + page.attributes("href") if "://" in value] == []
