"""The report in headless Chromium: it draws, filters, fits a phone, turns dark, and runs nothing that came as data."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exoalign.report import write_page

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install 'exoalign[dev]')"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (apt-get install chromium)")

ATTACK = "<script>window.hacked=1</script></script><img src=x onerror='window.hacked=1'> {{7*7}} [/foo] \x1b[31m"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


class Visit:
    """Opens a report and keeps what the browser complained about and asked for."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.plots = self.page.locator(".chart:visible").count()
        sync_api.expect(self.page.locator(".chart:has(.main-svg .xtick)")).to_have_count(self.plots, timeout=15_000)

    def luminance(self, selector: str, attribute: str) -> float:
        script = "([selector, attribute]) => getComputedStyle(document.querySelector(selector))[attribute]"
        colour = self.page.evaluate(script, [selector, attribute])
        red, green, blue = (int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3])
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.fixture
def report(tmp_path: Path, reward_run: dict[str, Any]) -> Path:
    return write_page(tmp_path / "report.html", **reward_run)


def test_all_plots_are_drawn_without_a_complaint_or_a_request(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    assert visit.plots == 7
    assert visit.page.locator(".chart:has(.main-svg)").count() == 7
    assert visit.page.locator("#loss ~ .chart .point").count() == 24
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]


def test_the_image_button_works_under_the_policy(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    visit.page.locator("#loss ~ .chart").hover()
    with visit.page.expect_download() as download:
        visit.page.locator("#loss ~ .chart .modebar-btn").first.click()
    assert download.value.suggested_filename == "loss.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(browser: Any, tmp_path: Path, reward_run: dict[str, Any], scheme: str) -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 12
    reward_run["samples"][0]["prompt"] = word
    reward_run["samples"][0]["base"][0]["text"] = word
    reward_run["warnings"].append(word)
    reward_run["recipe"]["model"]["path"] = word
    reward_run["title"] = word
    visit = Visit(browser, write_page(tmp_path / "report.html", **reward_run), width=390, scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    charts = visit.page.locator(".main-svg").evaluate_all("all => all.map(one => one.getBoundingClientRect())")
    assert max(chart["right"] for chart in charts) <= 390
    assert min(chart["width"] for chart in charts) > 340  # one column


def test_the_dark_scheme_is_dark_and_its_plots_legible(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, scheme="dark")
    assert visit.luminance("body", "backgroundColor") < 0.15
    assert visit.luminance(".xtick text", "fill") > 0.7
    assert visit.luminance(".legendtext", "fill") > 0.7


def test_plots_follow_a_change_of_scheme(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    assert visit.luminance(".xtick text", "fill") < 0.3
    visit.page.emulate_media(color_scheme="dark")
    sync_api.expect(visit.page.locator(".xtick text").first).not_to_have_css("fill", "rgb(29, 35, 41)")
    assert visit.luminance(".xtick text", "fill") > 0.7
    assert visit.complaints == []


def test_the_filter_hides_what_does_not_match(browser: Any, tmp_path: Path, reward_run: dict[str, Any]) -> None:
    reward_run["samples"][3]["aligned"][1]["text"] = "The Quince Tree was closed."
    reward_run["samples"][9]["prompt"] = "Describe a quince."
    page = Visit(browser, write_page(tmp_path / "report.html", **reward_run)).page
    page.get_by_label("Filter by text").fill("quince")
    assert page.locator(".sample:visible").evaluate_all("all => all.map(one => one.id)") == ["prompt-4", "prompt-10"]
    assert page.locator("#shown").inner_text() == "2 of 32 prompts"
    page.get_by_label("Filter by text").fill("")
    assert page.locator(".sample:visible").count() == 32


def test_order_puts_gain_loss_and_median_first(browser: Any, tmp_path: Path, reward_run: dict[str, Any]) -> None:
    changes = [0.1, 0.9, -0.5, 0.2, None]  # the median of the four known is 0.15, which 0.1 and 0.2 are both 0.05 from
    reward_run["samples"] = [
        {
            "prompt": f"prompt {change}",
            "base": [{"text": "before", "reward": 0.0}],
            "aligned": [] if change is None else [{"text": "after", "reward": change}],
        }
        for change in changes
    ]
    page = Visit(browser, write_page(tmp_path / "report.html", **reward_run)).page
    ids = "all => all.map(one => Number(one.id.slice(7)))"
    for order, first in {"gain": [2, 4, 1, 3, 5], "loss": [3, 1, 4, 2, 5], "prompt": [1, 2, 3, 4, 5]}.items():
        page.get_by_label("Order").select_option(order)
        assert page.locator(".sample").evaluate_all(ids) == first
    page.get_by_label("Order").select_option("median")
    assert set(page.locator(".sample").evaluate_all(ids)[:2]) == {1, 4}


def test_a_link_to_a_filtered_prompt_opens_it(browser: Any, report: Path) -> None:
    page = Visit(browser, report).page
    page.get_by_label("Filter by text").fill("no such text")
    link = page.get_by_role("link", name="largest gain")
    target = str(link.get_attribute("href"))
    assert page.locator(target).is_hidden()
    link.click()
    sync_api.expect(page.locator(f"{target} .columns")).to_be_visible()
    assert page.get_by_label("Filter by text").input_value() == ""


def test_open_all_opens_what_is_shown(browser: Any, report: Path) -> None:
    page = Visit(browser, report).page
    page.get_by_role("button", name="Open all").click()
    assert page.locator(".sample[open]").count() == 32
    page.get_by_role("button", name="Close all").click()
    assert page.locator(".sample[open]").count() == 0


def test_injected_scripts_do_not_run(browser: Any, tmp_path: Path, reward_run: dict[str, Any]) -> None:
    run = reward_run | {
        "title": ATTACK,
        "warnings": [ATTACK],
        "recipe": {"name": ATTACK, "sample": {"k": 8}},
        "samples": [
            {"prompt": ATTACK, "base": [{"text": ATTACK, "reward": 0.0}], "aligned": [{"text": ATTACK, "reward": 1}]}
        ],
    }
    visit = Visit(browser, write_page(tmp_path / "report.html", **run))
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("main img").count() == 0
    assert visit.page.locator("h1").inner_text() == ATTACK.replace("\x1b", "␛")
    assert visit.complaints == []


def test_the_policy_stops_a_script_without_the_nonce(browser: Any, report: Path) -> None:
    page = report.read_text(encoding="utf-8").replace("</main>", "<script>window.hacked=1</script></main>")
    report.write_text(page, encoding="utf-8")
    visit = Visit(browser, report)
    assert visit.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


@pytest.mark.parametrize("run", ["pair", "empty"])
def test_runs_with_less_to_show_load_cleanly(browser: Any, tmp_path: Path, pair_run: dict[str, Any], run: str) -> None:
    if run == "empty":
        pair_run |= {"recipe": {}, "metrics": {}, "history": [], "stages": [], "versions": {}}
    visit = Visit(browser, write_page(tmp_path / "report.html", **pair_run), width=390, scheme="dark")
    assert visit.plots == (4 if run == "pair" else 0)
    assert visit.complaints == []
