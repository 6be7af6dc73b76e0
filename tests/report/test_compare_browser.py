"""The comparison's page in headless Chromium: it draws, filters, saves, fits a phone, and runs nothing that came as data."""

import csv
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from comparison_example import make_comparison
from test_browser import ATTACK, CHROMIUM, Visit, browser, sync_api

from exoalign.progress import CONTROL
from exoalign.report.compare_page import write_compare_page
from exoalign.report.html import visible

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (apt-get install chromium)")

PLOTS = 10  # that are not folded: frontier, two of cost, three of learning, two of win rates, two of gradients


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compare_page(tmp_path_factory.mktemp("whole") / "page.html", make_comparison())


@pytest.fixture(scope="module")
def visit(browser: Any, whole: Path) -> Visit:
    """One visit for the tests that leave the page as they found it."""
    return Visit(browser, whole)


@pytest.fixture
def clean(visit: Visit) -> Iterator[Any]:
    visit.page.reload()
    sync_api.expect(visit.page.locator(".chart:has(.main-svg .xtick)")).to_have_count(PLOTS, timeout=15_000)
    yield visit.page
    assert visit.complaints == []


def test_all_plots_are_drawn_without_a_complaint_or_a_request(visit: Visit, whole: Path) -> None:
    assert visit.plots == PLOTS
    points = visit.page.locator("#frontier-plot ~ .chart .point")
    assert points.count() == 9 * 3 * 5 + 5
    assert visit.complaints == []
    assert {url for url in visit.requests if not url.startswith(("data:", "blob:"))} == {whole.as_uri()}


def test_the_curves_of_the_trainers_are_drawn_when_they_are_opened(clean: Any) -> None:
    clean.locator(".histories > summary").click()
    sync_api.expect(clean.locator(".histories .chart:has(.main-svg .xtick)")).to_have_count(3, timeout=15_000)


def test_hover_tells_what_a_point_is(clean: Any) -> None:
    clean.evaluate(
        """() => {
          const chart = document.querySelector("#frontier-plot ~ .chart");
          const trace = chart.data.findIndex((one) => one.meta === 8 && one.customdata);
          Plotly.Fx.hover(chart, [{ curveNumber: trace, pointNumber: 4 }]);
        }"""
    )
    text = clean.locator("#frontier-plot ~ .chart .hovertext").text_content()
    last = next(run for run in make_comparison()["runs"] if run["method"] == "ppo")["points"][-1]
    said = [
        f"{q['mean']:.{n}f} [{q['low']:.{n}f}, {q['high']:.{n}f}]"
        for q, n in ((last["reward"], 3), (last["kl_exact"], 2))
    ]
    assert text == f"PPObeta 0.5, seed 0, step 120reward {said[0]}KL {said[1]}"


def test_a_click_on_a_point_shows_its_samples(clean: Any) -> None:
    at = clean.evaluate(
        """() => {
          const chart = document.querySelector("#frontier-plot ~ .chart");
          chart.scrollIntoView();
          const trace = chart.data.find((one) => one.meta === 8 && one.customdata);
          const place = trace.customdata.findIndex((data) => data[1] === "0.5" && data[2] === 1 && data[3] === 120);
          const { xaxis, yaxis } = chart._fullLayout;
          const box = chart.getBoundingClientRect();
          return [box.left + xaxis._offset + xaxis.d2p(trace.x[place]), box.top + yaxis._offset + yaxis.d2p(trace.y[place])];
        }"""
    )
    clean.mouse.move(*at)
    clean.mouse.click(*at)
    heading = clean.locator("#checkpoint h3")
    sync_api.expect(heading).to_contain_text("PPO, beta 0.5, seed 1, step 120: reward")
    expected = [
        (row["text"], sample["prompt"])
        for sample in make_comparison()["samples"]
        for row in sample["rows"]
        if (row["method"], row["seed"], row["step"]) == ("ppo", 1, 120)
    ]
    assert clean.locator("#checkpoint li").count() == 20
    first = clean.locator("#checkpoint li").first.locator(".text").all_inner_texts()
    assert (f" {first[1]}", first[0]) == expected[0]
    clean.get_by_role("button", name="More samples").click()
    assert clean.locator("#checkpoint li").count() == min(40, len(expected))


def test_a_checkpoint_is_chosen_by_keyboard(clean: Any) -> None:
    clean.locator("#checkpoint-choice").focus()
    clean.keyboard.type("Best-of-N, seed 0, step 1")
    clean.keyboard.press("Enter")
    sync_api.expect(clean.locator("#checkpoint h3")).to_contain_text("Best-of-N")
    assert clean.locator("#checkpoint p.none, #checkpoint li").count() > 0


def test_methods_are_switched_off_in_all_plots(clean: Any) -> None:
    drawn = "[...document.querySelectorAll('.chart')].flatMap((chart) => chart.data ?? [])"
    count = f"{drawn}.filter((trace) => trace.meta === 0 && trace.visible !== false).length"
    assert clean.evaluate(count) == 3 + 2 + 3  # frontier: band, line, points; no gradient was measured for it
    clean.get_by_label("EXO, K = 4", exact=True).uncheck()
    assert clean.evaluate(count) == 0
    clean.locator("#kl-axis").select_option("log")
    clean.emulate_media(color_scheme="dark")
    sync_api.expect(clean.locator("#frontier-plot ~ .chart .xtick text").first).to_have_css(
        "fill", "rgb(231, 229, 224)"
    )
    sync_api.expect(clean.locator("#gradient-cosine ~ .chart .xtick text").first).to_have_css(
        "fill", "rgb(231, 229, 224)"
    )
    assert clean.evaluate(count) == 0  # also after the plots were drawn anew
    assert clean.evaluate("document.querySelector('#frontier-plot ~ .chart').layout.xaxis.type") == "log"
    clean.emulate_media(color_scheme="light")
    clean.get_by_role("button", name="None", exact=True).click()
    assert clean.locator(".chips input:checked").count() == 0
    clean.get_by_role("button", name="All", exact=True).click()
    assert clean.evaluate(count) == 3 + 2 + 3


# The samples.


def rows_of(page: Any) -> list[list[str]]:
    """Of the first prompt the method and origin of each reply."""
    return [text.split("\n") for text in page.locator("details[open] .reply h3").all_inner_texts()]


def test_samples_are_rendered_a_few_at_a_time(clean: Any) -> None:
    assert clean.locator("#count").inner_text() == "1664 of 2000 replies to 58 of 58 prompts"
    assert clean.locator("#prompts > details").count() == 20
    assert clean.locator("#prompts .reply").count() == 29  # of the open prompt only
    clean.get_by_role("button", name="More prompts").click()
    clean.get_by_role("button", name="More prompts").click()
    assert clean.locator("#prompts > details").count() == 58
    assert clean.locator("#more-prompts").is_hidden()
    assert clean.locator("#prompts .reply").count() == 29
    clean.locator("#prompts > details").nth(1).locator("summary").click()
    sync_api.expect(clean.locator("#prompts .reply")).to_have_count(58)


def test_filters_by_method_seed_beta_and_step(clean: Any) -> None:
    clean.locator("#of-method").select_option(label="PPO")
    assert clean.locator("#prompts details[open] .reply").count() == 3
    clean.locator("#of-seed").select_option("2")
    clean.locator("#of-step").select_option("48")
    assert clean.locator("#count").inner_text() == "3 of 2000 replies to 3 of 58 prompts"
    assert clean.locator("#prompts details[open] .from").all_inner_texts() == ["beta 0.5, seed 2, step 48"]
    clean.locator("#of-step").select_option(label="all")
    assert clean.locator("#prompts details[open] .reply").count() == 5
    clean.locator("#of-method").select_option(label="all")
    clean.locator("#of-seed").select_option(label="all")
    clean.locator("#of-beta").select_option("0.5")
    assert clean.locator("#prompts details[open] .reply").count() == 9 * 3 * 5  # without SFT and Best-of-N


@pytest.fixture
def three(browser: Any, tmp_path: Path) -> Any:
    """Three prompts with two replies each; one reward is not known."""
    rewards = [(0.1, 0.2), (0.9, None), (-0.5, 0.7)]
    samples = [
        {
            "prompt": f"prompt {place}",
            "rows": [
                {"method": name, "seed": 0, "beta": 0.5, "step": 1, "text": f"{name} Quince {place}", "reward": reward}
                for name, reward in zip(("exo", "dpo"), pair, strict=True)
            ],
        }
        for place, pair in enumerate(rewards)
    ]
    methods = [{"name": "exo", "label": "EXO"}, {"name": "dpo", "label": "DPO"}]
    page = {"title": "three", "methods": methods, "runs": [], "samples": samples}
    visit = Visit(browser, write_compare_page(tmp_path / "page.html", page))
    yield visit.page
    assert visit.complaints == []


def test_order_by_reward(three: Any) -> None:
    for order, prompts, replies in (
        ("prompt", ["1", "2", "3"], ["EXO", "DPO"]),
        ("high", ["2", "3", "1"], ["EXO", "DPO"]),  # 0.9, 0.7, 0.2
        ("low", ["3", "1", "2"], ["EXO", "DPO"]),  # -0.5, 0.1, 0.9
        ("spread", ["3", "1", "2"], ["EXO", "DPO"]),  # 1.2, 0.1, 0
    ):
        three.locator("#sort").select_option(order)
        assert three.locator("#prompts .index").all_inner_texts() == prompts, order
        names = [row[0] for row in rows_of(three)]
        assert names == replies, order
    three.locator("#sort").select_option("high")
    three.locator("#prompts summary").nth(1).click()
    sync_api.expect(three.locator("#prompts .reply")).to_have_count(4)
    assert [row[0] for row in rows_of(three)][2:] == ["DPO", "EXO"]  # 0.7 before -0.5


def test_search_finds_prompts_and_replies_and_marks_them(three: Any) -> None:
    three.get_by_label("Search prompts and replies").fill("exo quince 2")
    assert three.locator("#count").inner_text() == "1 of 6 replies to 1 of 3 prompts"
    assert three.locator("mark").all_inner_texts() == ["exo Quince 2"]
    three.get_by_label("Search prompts and replies").fill("PROMPT 1")
    assert three.locator("#count").inner_text() == "2 of 6 replies to 1 of 3 prompts"
    three.get_by_label("Search prompts and replies").fill("nothing like it")
    assert three.locator("#count").inner_text() == "0 of 6 replies to 0 of 3 prompts"
    three.get_by_label("Search prompts and replies").fill("")
    assert three.locator("#prompts > details").count() == 3


def attacked() -> dict[str, Any]:
    """A comparison with the attack in every text."""
    comparison = make_comparison(samples=40)
    for method in comparison["methods"]:
        method |= {"label": ATTACK, "about": ATTACK}
    for sample in comparison["samples"]:
        sample["prompt"] = ATTACK
        for row in sample["rows"]:
            row["text"] = ATTACK
    comparison["samples"][0]["rows"].append({"method": ATTACK, "seed": 0, "beta": None, "step": 0, "text": ATTACK})
    comparison["win_rates"]["models"][0] = ATTACK
    comparison["search"][0]["trials"][0]["settings"] = {ATTACK: ATTACK}
    return comparison | {
        "title": ATTACK,
        "warnings": [ATTACK],
        "recipe": {ATTACK: ATTACK},
        "versions": {ATTACK: ATTACK},
    }


def test_what_came_as_data_is_inert(browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, write_compare_page(tmp_path / "page.html", attacked()))
    visit.page.locator("#checkpoint-choice").select_option(index=3)
    visit.page.locator("#of-step").select_option(label="all")
    visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    sync_api.expect(visit.page.locator("#prompts .reply")).to_have_count(41)
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("main img, .chart svg a").count() == 0
    seen = ATTACK.replace("\x1b", "␛")
    assert visit.page.locator("h1").inner_text() == seen
    assert visit.page.locator(".reply .text").first.inner_text() == seen
    assert visit.page.locator("#checkpoint .text").first.inner_text() == seen
    assert visit.complaints == []


def test_control_characters_are_visible_as_in_python(browser: Any, tmp_path: Path) -> None:
    text = "a" + "b".join([*sorted(CONTROL), "\ufeff", "\ud800", "\udfff", "\t", "\n", "é", "😀"]) + "c"
    row = {"method": "exo", "text": text, "reward": 1}
    page = {"title": "t", "methods": [{"name": "exo"}], "runs": [], "samples": [{"prompt": "p", "rows": [row]}]}
    visit = Visit(browser, write_compare_page(tmp_path / "page.html", page))
    assert visit.page.locator(".reply .text").evaluate("one => one.textContent") == visible(text)


# The look.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(browser: Any, tmp_path: Path, scheme: str) -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 12
    comparison = make_comparison(samples=60)
    comparison |= {"title": word, "warnings": [word]}
    comparison["methods"][0] |= {"label": word, "about": word}
    comparison["samples"][0]["prompt"] = word
    comparison["samples"][0]["rows"][1]["text"] = word
    comparison["recipe"]["name"] = word
    visit = Visit(browser, write_compare_page(tmp_path / "page.html", comparison), width=390, scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    visit.page.locator("#checkpoint-choice").select_option(index=5)
    sync_api.expect(visit.page.locator(".chart:has(.main-svg .xtick)")).to_have_count(PLOTS + 3, timeout=15_000)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(browser: Any, whole: Path, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed (pip install 'exoalign[dev]')",
    )
    visit = Visit(browser, whole, scheme=scheme)
    visit.page.locator("#checkpoint-choice").select_option(index=5)
    found = axe.Axe().run(visit.page).response["violations"]
    assert [(fault["id"], [node["html"][:200] for node in fault["nodes"][:3]]) for fault in found] == []


@pytest.mark.parametrize("runs", [[], [{"method": "exo", "seed": 0, "beta": 0.5, "points": [], "history": []}]])
def test_a_comparison_that_has_only_begun_loads_cleanly(browser: Any, tmp_path: Path, runs: list[Any]) -> None:
    page = {"title": "new", "methods": [{"name": "exo", "label": "EXO"}], "runs": runs}
    visit = Visit(browser, write_compare_page(tmp_path / "page.html", page), width=390)
    assert visit.plots == 0
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="The comparison as JSON").click()
    assert json.loads(Path(download.value.path()).read_text("utf-8")) == page
    assert visit.complaints == []


# The files.


def saved(page: Any, button: Any) -> tuple[str, bytes]:
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_the_comparison_is_saved_as_json(clean: Any) -> None:
    name, content = saved(clean, clean.get_by_role("button", name="The comparison as JSON"))
    assert name == "comparison.json"
    assert json.loads(content) == make_comparison()


def test_the_points_are_saved_as_csv(clean: Any) -> None:
    name, content = saved(clean, clean.get_by_role("button", name="All points as CSV"))
    assert name == "points.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    points = [(run, point) for run in make_comparison()["runs"] for point in run["points"]]
    assert len(rows) == len(points)
    for row, (run, point) in zip(rows, points, strict=True):
        assert (row["method"], row["seed"], row["step"]) == (run["method"], str(run["seed"]), str(point["step"]))
        assert row["beta"] == ("" if run["beta"] is None else "0.5")
        assert float(row["kl_k3_high"]) == point["kl_k3"]["high"]
        assert float(row["seconds"]) == point["seconds"]


def test_a_figure_is_saved_as_png_and_svg_on_white(browser: Any, whole: Path) -> None:
    visit = Visit(browser, whole, scheme="dark")
    visit.page.get_by_label("PPO", exact=True).uncheck()
    name, png = saved(visit.page, visit.page.get_by_role("button", name="Save “Reward against KL” as PNG"))
    assert name == "frontier-plot.png"
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (3000, 2040)
    name, svg = saved(visit.page, visit.page.get_by_role("button", name="Save “Reward against KL” as SVG"))
    assert name == "frontier-plot.svg"
    text = svg.decode()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "rgb(0, 114, 178)" in text  # the light scheme's blue
    assert "rgb(255, 255, 255)" in text
    assert "EXO, K = 32" in text  # the legend
    assert ">PPO<" not in text
    assert visit.complaints == []


def test_the_matrix_is_saved_with_its_numbers(clean: Any) -> None:
    _, svg = saved(clean, clean.get_by_role("button", name="Save “Win rates” as SVG"))
    assert ElementTree.fromstring(svg.decode()).tag.endswith("svg")
    assert b">82<" in svg  # EXO, K = 4 against SFT: 1 / (1 + exp(-2.5 * 0.62))
