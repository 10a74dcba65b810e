"""The page in headless Chromium: click an object, see its mask, save it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="needs the extra 'label'")
pytest.importorskip("selenium", reason="needs selenium")

import uvicorn
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pipeline import FlowConfig
from pipeline.formats.palette import read_indexed_png
from pipeline.label.app import make_app
from pipeline.label.workbench import Workbench

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,760",
)
SECONDS = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
    # selenium leaves the closing of its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "frames"
    path.mkdir()
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:180, :320]
    for index in range(12):
        image = generator.integers(90, 130, (180, 320, 3)).astype(np.uint8)
        image[(x - 100 - 6 * index) ** 2 + (y - 90) ** 2 < 40**2] = (220, 60, 40)
        Image.fromarray(image).save(path / f"{index:05d}.png")
    return path


@pytest.fixture(scope="module")
def address(folder: Path, coarse_prompts: None) -> Iterator[str]:
    config = FlowConfig().only(
        "propagate", "annotate", "write", extract={"short_side": 112}, write={"report": True}
    )
    workbench = Workbench(folder, folder.parent / "masks", folder.parent / "masks_run", config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(workbench, "token"), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/token/"
    server.should_exit = True
    thread.join(20)
    listener.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(SECONDS)
    yield driver
    driver.quit()


def wait_for(browser: Any, text: str) -> str:
    """Wait until the status line contains a text; returns the line."""
    WebDriverWait(browser, SECONDS).until(lambda b: text in b.find_element(By.ID, "status").text)
    return str(browser.find_element(By.ID, "status").text)


def click_at(browser: Any, x: float, y: float, *, right: bool = False) -> None:
    """Click a pixel of the frame, whatever size the page shows it at."""
    stage = browser.find_element(By.ID, "stage")
    scale = stage.size["width"] / 320
    at = ActionChains(browser).move_to_element_with_offset(stage, (x - 160) * scale, (y - 90) * scale)
    (at.context_click() if right else at.click()).perform()


@pytest.mark.timeout(300)
def test_click_see_the_mask_save_and_run(browser: Any, address: str, folder: Path, tmp_path: Path) -> None:
    browser.get(address)
    wait_for(browser, "Click an object")
    click_at(browser, 100, 90)
    wait_for(browser, "Mask in")
    overlay = browser.find_element(By.ID, "overlay")
    WebDriverWait(browser, SECONDS).until(lambda b: overlay.is_displayed())

    browser.find_element(By.ID, "add").click()
    click_at(browser, 280, 30)
    wait_for(browser, "Mask in")
    browser.find_element(By.ID, "undo").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#objects li")) == 2

    browser.find_element(By.TAG_NAME, "body").send_keys("s")
    wait_for(browser, "Saved")
    mask = read_indexed_png(folder.parent / "masks" / "00000.png")
    y, x = np.mgrid[:180, :320]
    disk = (x - 100) ** 2 + (y - 90) ** 2 < 40**2
    assert ((mask == 1) & disk).sum() / ((mask == 1) | disk).sum() > 0.7
    assert set(np.unique(mask)) == {0, 1}

    browser.find_element(By.ID, "run").click()
    video = browser.find_element(By.ID, "video")
    WebDriverWait(browser, 2 * SECONDS).until(lambda b: video.is_displayed())
    assert (folder.parent / "masks_run" / "annotated.mp4").is_file()
    report = browser.find_element(By.ID, "report")
    WebDriverWait(browser, SECONDS).until(lambda b: report.is_displayed())
    report.click()
    browser.switch_to.window(browser.window_handles[-1])
    WebDriverWait(browser, SECONDS).until(lambda b: b.current_url.endswith("run/files/report.html"))
    assert browser.find_elements(By.TAG_NAME, "video")
    browser.switch_to.window(browser.window_handles[0])
    browser.save_screenshot(str(tmp_path / "page.png"))
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


@pytest.mark.timeout(200)
def test_the_stop_button_ends_a_run(browser: Any, address: str) -> None:
    browser.get(address)
    wait_for(browser, "Click an object")
    click_at(browser, 100, 90)
    wait_for(browser, "final in")
    browser.execute_script("document.getElementById('run').click()")
    stop = browser.find_element(By.ID, "stop")
    WebDriverWait(browser, SECONDS).until(lambda b: stop.is_displayed())
    stop.click()
    assert "stopped" in wait_for(browser, "stopped")
    assert not stop.is_displayed()


@pytest.mark.timeout(200)
def test_a_dragged_box_and_a_right_click(browser: Any, address: str) -> None:
    browser.get(address)
    wait_for(browser, "Click an object")
    stage = browser.find_element(By.ID, "stage")
    scale = stage.size["width"] / 320
    drag = ActionChains(browser).move_to_element_with_offset(stage, -102 * scale, -42 * scale).click_and_hold()
    drag.move_by_offset(round(84 * scale), round(84 * scale)).release().perform()
    wait_for(browser, "Mask in")
    click_at(browser, 20, 20, right=True)
    time.sleep(0.5)
    prompts = browser.execute_script("return state.prompts[0]")
    assert "box" in prompts[0]
    assert prompts[1]["positive"] is False
    left, top, right, bottom = prompts[0]["box"]
    assert (abs(left - 58), abs(top - 48)) < (3, 3)
    assert (abs(right - 142), abs(bottom - 132)) < (3, 3)
