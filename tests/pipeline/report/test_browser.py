"""The report in a real browser: Debian's Chromium, without a screen and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.colors import OBJECT_COLORS
from pipeline.report import write_index, write_report
from tests.run_folders import make_run

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
    with playwright.sync_playwright() as started:
        instance = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any error of its scripts."""
    messages: list[str] = []
    opened = browser.new_page(bypass_csp=True, viewport={"width": 1100, "height": 800})
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("console", lambda message: messages.extend([message.text] * (message.type == "error")))
    yield opened
    opened.close()
    assert messages == []


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write_report(make_run(tmp_path / "runs" / "square"))


def open_report(page: Any, path: Path, fragment: str = "") -> None:
    page.goto(path.as_uri() + fragment)
    page.wait_for_function("document.getElementById('video').readyState >= 2")


def shown_time(page: Any) -> float:
    page.wait_for_function("!document.getElementById('video').seeking")
    return float(page.evaluate("document.getElementById('video').currentTime"))


def test_a_click_on_a_doubtful_frame_jumps_there(page: Any, report: Path) -> None:
    open_report(page, report)
    assert shown_time(page) == 0
    page.locator(".card").first.click()
    page.wait_for_function("document.getElementById('video').currentTime > 0")
    assert 0.16 <= shown_time(page) < 0.2
    assert page.locator(".card.current").count() == 1


def test_a_click_on_a_worst_moment_or_a_bar_or_a_strip_jumps_there(page: Any, report: Path) -> None:
    open_report(page, report)
    page.locator('[data-strip="1"] .mark').first.click()
    page.wait_for_function("document.getElementById('video').currentTime > 0")
    assert 0.28 <= shown_time(page) < 0.32
    page.locator(".bar").nth(1).click(position={"x": 2, "y": 4})
    page.wait_for_function("document.getElementById('video').currentTime < 0.2")
    assert 0.08 <= shown_time(page) < 0.12
    box = page.locator('[data-strip="2"]').bounding_box()
    page.locator('[data-strip="2"]').click(position={"x": box["width"] * 0.75, "y": 36})
    page.wait_for_function("document.getElementById('video').currentTime > 0.2")
    assert shown_time(page) == pytest.approx(0.75 * 0.4, abs=0.04)


def color_at(page: Any, x: float, y: float) -> list[int]:
    """The overlay's color at a place given as a share of the frame."""
    script = """([x, y]) => { const c = document.getElementById('overlay');
        return Array.from(c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data); }"""
    return list(page.evaluate(script, [x, y]))


def test_the_mask_of_an_object_can_be_switched_on_and_off(page: Any, report: Path) -> None:
    """In frame 4 object 1 covers (16, 30) and object 2 covers (32, 7) of 64 x 48 pixels."""
    open_report(page, report, "#t=0.16")
    page.wait_for_function("document.getElementById('video').currentTime > 0.15")
    first, second, nothing = (16.5 / 64, 30.5 / 48), (32.5 / 64, 7.5 / 48), (60.5 / 64, 45.5 / 48)
    assert color_at(page, *first)[3] == 0
    page.locator(".toggle").first.check()
    page.wait_for_function("document.getElementById('overlay').getContext('2d').getImageData(0, 0, 1, 1).data[3]")
    # The canvas keeps colors multiplied by their opacity, which rounds them a little.
    assert color_at(page, *first)[:3] == pytest.approx(OBJECT_COLORS[1].tolist(), abs=3)
    assert color_at(page, *second) == color_at(page, *nothing) == [0, 0, 0, 130]
    page.locator("#all").click()
    page.wait_for_timeout(200)
    assert color_at(page, *second)[:3] != [0, 0, 0]
    page.locator("#none").click()
    page.wait_for_timeout(200)
    assert color_at(page, *first)[3] == color_at(page, *nothing)[3] == 0


def test_the_page_fits_a_phone_and_prints_without_the_player(browser: Any, report: Path) -> None:
    phone = browser.new_page(bypass_csp=True, viewport={"width": 390, "height": 844})
    open_report(phone, report)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.emulate_media(media="print")
    assert not phone.locator("#player").is_visible()
    assert phone.locator(".card").first.is_visible()
    assert len(phone.pdf(format="A4")) > 10_000
    phone.close()


def test_the_index_leads_to_the_worst_moment_and_sorts(page: Any, report: Path) -> None:
    make_run(report.parent.parent / "zebra", seconds=1.5)
    page.goto(write_index(report.parent.parent).as_uri())
    page.get_by_role("button", name="seconds").click()
    assert page.locator("tbody tr").first.locator("td").first.inner_text() == "zebra"
    page.get_by_role("button", name="seconds").click()
    assert page.locator("tbody tr").first.locator("td").first.inner_text() == "square"
    page.locator("tbody tr").first.get_by_role("link").nth(1).click()
    page.wait_for_function("document.getElementById('video').currentTime > 0")
    assert 0.16 <= shown_time(page) < 0.2
