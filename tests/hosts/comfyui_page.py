"""ComfyUI's page in a headless Chromium: load a workflow, run it, photograph it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hosts.comfyui_server import Server

SIZE = (2200, 1300)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no dialog in front of the page
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # texts also in small nodes
}


@contextmanager
def page(server: Server) -> Iterator[Any]:
    """The page, loaded; skips where there is no Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("there is no Chromium with its driver here")
    server.post("/settings", SETTINGS)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={SIZE[0]},{SIZE[1]}")
    service = webdriver.ChromeService(executable_path=driver_path)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(60)
        driver.get(server.url)
        _until(driver, "return !!(window.app && app.graph && app.vueAppReady !== false)")
        time.sleep(2)  # the page puts its own workflow in first
        yield driver
    finally:
        driver.quit()


def load(driver: Any, workflow: dict[str, Any]) -> None:
    """Loads a workflow as the page's menu does."""
    script = "const done = arguments[1]; app.loadGraphData(JSON.parse(arguments[0])).then(done)"
    driver.execute_async_script(script, json.dumps(workflow))
    time.sleep(1)


def run(driver: Any, server: Server, seconds: float = 600) -> dict[str, Any]:
    """Presses Run and waits; the prompt's history."""
    before = set(server.get("/history"))
    driver.execute_async_script("app.queuePrompt(0).then(arguments[0])")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        new = {key: one for key, one in server.get("/history").items() if key not in before}
        if new and not server.get("/queue")["queue_running"]:
            found: dict[str, Any] = next(iter(new.values()))
            return found
        time.sleep(0.3)
    raise AssertionError("the prompt does not end")


def photograph(driver: Any, path: Path, width: int = 1400) -> None:
    """All nodes of the canvas, without the page around them, as a picture of this width."""
    box = driver.execute_script(
        """
        const nodes = app.graph._nodes, canvas = app.canvas;
        const left = Math.min(...nodes.map(n => n.pos[0])) - 20;
        const top = Math.min(...nodes.map(n => n.pos[1])) - 50;
        const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + 20;
        const low = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + 20;
        const view = canvas.canvas.getBoundingClientRect();
        const room = [view.width - 80, view.height - 160];
        const scale = Math.min(room[0] / (right - left), room[1] / (low - top));
        canvas.ds.scale = scale;
        canvas.ds.offset = [-left + 60 / scale, -top + 90 / scale];
        canvas.setDirty(true, true);
        const x = view.left + 60, y = view.top + 90;
        return [x, y, x + scale * (right - left), y + scale * (low - top)];
        """
    )
    time.sleep(1.5)
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as shot:
        picture = shot.convert("RGB").crop(tuple(map(round, box)))
    height = width * picture.height // picture.width
    picture.resize((width, height), Image.Resampling.LANCZOS).save(path, quality=88)


def _until(driver: Any, script: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not driver.execute_script(script):
        if time.monotonic() > deadline:
            raise AssertionError("the page does not come up")
        time.sleep(0.2)
