"""The tab under a host's own gradio, in a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engine_environment import ROOT, this_python
from helpers.gradio import HOSTS, python_of
from helpers.processes import ports

from .driving import Browser, chromium

WEBUI = ROOT / "tests" / "helpers" / "a1111" / "webui.py"
UP = 120.0
"""Seconds that a server may need on a busy machine."""


class Server:
    """A stand-in for a host, with the extension in it."""

    def __init__(self, python: Path, folder: Path, *arguments: str, engine: bool = True) -> None:
        self.data = folder / "data"
        self.loras = self.data / "models" / "Lora"
        self.runs = self.data / "outputs" / "dreambooth" / "runs"
        self.port = ports(1)[0]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "server.log"
        self.engine = folder / "engine"
        environ = {
            **os.environ,
            "STAND_IN_DATA": str(self.data),
            "DREAMBOOTH_ENV": str(this_python(self.engine) if engine else self.engine),
            "DREAMBOOTH_SPARE_MINUTES": "0.3",  # the second run of a story begins at once
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(folder / "gradio"),
        }
        command = [str(python), str(WEBUI), str(ROOT), "--port", str(self.port), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + UP
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                # The last thing that is added to a page that answers already.
                urllib.request.urlopen(self.address + "stand-in/remembered", timeout=5).close()
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text(encoding="utf-8", errors="replace"))

    def reload(self) -> None:
        """Reload UI: the page's server goes and comes again, the process stays."""
        request = urllib.request.Request(self.address + "stand-in/reload", method="POST")
        urllib.request.urlopen(request, timeout=10).close()
        time.sleep(1.0)
        self.wait()

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def require_browser() -> None:
    """Skips a test where there is none."""
    if shutil.which("chromedriver") is None or chromium() is None:
        pytest.skip("no chromium and chromedriver on the path (Debian: chromium chromium-driver)")


@pytest.fixture(scope="module", params=HOSTS)
def python(request: pytest.FixtureRequest) -> Path:
    """The Python of a host: gradio 3.41 or 4.40."""
    host: str = request.param
    return python_of(host)


@pytest.fixture(scope="module")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host with the tab."""
    made = Server(python, tmp_path_factory.mktemp("host"))
    try:
        made.wait()
        yield made
    finally:
        made.close()


@pytest.fixture
def browser(server: Server) -> Iterator[Browser]:
    """The tab's page, opened."""
    require_browser()
    made = Browser(server.address)
    try:
        made.open()
        yield made
    finally:
        made.quit()
