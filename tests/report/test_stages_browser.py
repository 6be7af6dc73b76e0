"""The stages of a chain in headless Chromium: drawn, folded on a phone, dark, printed whole, and inert."""

from pathlib import Path
from typing import Any

import pytest
from test_browser import Visit, browser, pytestmark, sync_api  # noqa: F401 - the fixture and the skip
from test_stages_section import attacked

from exoalign.report import write_page

TRAINING = 7  # the plots of the page that are no stage's
STAGES = 12


@pytest.fixture
def report(tmp_path: Path, chain_run: dict[str, Any]) -> Path:
    return write_page(tmp_path / "report.html", **chain_run)


def outside(visit: Visit) -> list[str]:
    """What lies over the edge of its plot: titles, ticks and names that would be cut."""
    script = """() => [...document.querySelectorAll(".stage .chart")].filter(chart => chart.checkVisibility()).flatMap(
        chart => [...chart.querySelectorAll(".legendtext, .xtick text, .ytick text, .xtitle, .ytitle")]
            .filter(text => {
                const inner = text.getBoundingClientRect(), outer = chart.getBoundingClientRect();
                return inner.left < outer.left - 1 || inner.right > outer.right + 1
                    || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
            })
            .map(text => text.textContent))"""
    return list(visit.page.evaluate(script))


def test_all_plots_of_all_stages_are_drawn_whole(browser: Any, report: Path) -> None:  # noqa: F811
    visit = Visit(browser, report)
    assert visit.plots == TRAINING + STAGES
    assert outside(visit) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 1280
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_folds_the_stages_and_draws_one_that_opens(browser: Any, report: Path, scheme: str) -> None:  # noqa: F811
    visit = Visit(browser, report, width=390, scheme=scheme)
    stages = visit.page.locator("details.stage")
    assert visit.plots == TRAINING
    assert stages.count() == 7
    assert visit.page.locator("details.stage[open]").count() == 0
    drawn = visit.page.locator(".stage .chart:has(.xtick)")
    stages.nth(1).locator("summary").first.click()
    sync_api.expect(drawn).to_have_count(4)
    for place in (0, 2, 3, 4, 5, 6):
        stages.nth(place).locator("summary").first.click()
    sync_api.expect(drawn).to_have_count(STAGES)
    for texts in visit.page.locator(".texts summary").all():
        texts.click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    assert outside(visit) == []
    assert (visit.luminance(".stage .xtick text", "fill") > 0.7) == (scheme == "dark")
    assert visit.complaints == []


def test_a_folded_stage_opens_in_the_scheme_of_then(browser: Any, report: Path) -> None:  # noqa: F811
    visit = Visit(browser, report)
    head = visit.page.locator("#stage-1 > summary")
    tick = visit.page.locator("#stage-1 .xtick text").first
    sync_api.expect(tick).to_have_css("fill", "rgb(29, 35, 41)")
    head.click()
    visit.page.emulate_media(color_scheme="dark")
    sync_api.expect(visit.page.locator("#stage-2 .xtick text").first).to_have_css("fill", "rgb(231, 229, 224)")
    head.click()
    sync_api.expect(tick).to_have_css("fill", "rgb(231, 229, 224)")
    assert visit.complaints == []


def test_what_is_printed_is_unfolded(browser: Any, report: Path) -> None:  # noqa: F811
    visit = Visit(browser, report, width=390)
    visit.page.pdf()
    assert visit.page.locator("details.stage[open]").count() == 7
    sync_api.expect(visit.page.locator(".stage .chart:has(.xtick)")).to_have_count(STAGES)


def test_injected_scripts_do_not_run(browser: Any, tmp_path: Path, chain_run: dict[str, Any]) -> None:  # noqa: F811
    label = "<b>bold</b> <a href='//x.y'>link</a>"  # which plotly reads
    chain_run["stages"][0]["summary"] = attacked()
    chain_run["stages"][0]["summary"]["curves"][0]["x_label"] = label
    visit = Visit(browser, write_page(tmp_path / "report.html", **chain_run))
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("main img").count() == 0
    assert visit.page.locator("#stage-1 .xtitle").first.text_content() == label
    assert visit.page.locator("#stage-1 svg a").count() == 0
    assert visit.complaints == []
