"""The doctor's page in headless Chromium: it draws, fits a phone, turns dark, and runs nothing that came as data."""

from pathlib import Path
from typing import Any

import pytest
from test_browser import ATTACK, Visit, browser, pytestmark  # noqa: F401 - the fixture and the skip
from test_doctor_page import examined

from exoalign.report.doctor_page import write_doctor_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_whole_and_nothing_complains(browser: Any, tmp_path: Path, scheme: str) -> None:  # noqa: F811
    word = "Donaudampfschifffahrtsgesellschaft" * 12
    path = write_doctor_page(tmp_path / "page.html", examined(source=word, errors=(f"{word}:1: {ATTACK}",)))
    visit = Visit(browser, path, width=390, scheme=scheme)
    assert visit.plots == 6
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    assert visit.page.evaluate("window.hacked") is None
    assert (visit.luminance("body", "backgroundColor") < 0.15) == (scheme == "dark")
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
