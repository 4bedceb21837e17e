"""A real A1111, Forge or Forge Classic for tests: started with a data folder of its own, so that
the host itself stays as it is; driven through its API.

``A1111_DIR``, ``FORGE_DIR`` and ``CLASSIC_DIR`` name their folders (with ``repositories/`` and a
``venv``, or the Python in ``A1111_PYTHON``, ``FORGE_PYTHON`` and ``CLASSIC_PYTHON``).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.engine_environment import this_python

ROOT = Path(__file__).parents[2]
NAME = "sd-webui-dreambooth-studio"
OURS = "/dreambooth/v1"

_A1111 = "--skip-torch-cuda-test --skip-version-check --no-half --use-cpu all"
FLAGS = {
    "A1111": f"{_A1111} --do-not-download-clip",
    "FORGE": "--always-cpu --do-not-download-clip",
    "CLASSIC": "--always-cpu",
}
COMMON = "--skip-prepare-environment --no-download-sd-model --api"
PATIENCE = 240.0
"""Seconds that a host may take to stand."""


class Refused(Exception):
    """The host answered with an error."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body}")
        self.code = code
        self.body = body


def folder_of(kind: str) -> Path:
    """The host's folder; skips the test where none is named."""
    named = os.environ.get(f"{kind}_DIR")
    if not named:
        pytest.skip(f"{kind}_DIR does not name a host to test with")
    path = Path(named)
    if not (path / "launch.py").is_file():
        pytest.skip(f"{kind}_DIR: there is no launch.py in {path}")
    return path


def python_of(kind: str, host: Path) -> str:
    """The host's Python; skips the test where it has none."""
    named = os.environ.get(f"{kind}_PYTHON")
    found = [host / "venv" / "bin" / "python", host / "venv" / "Scripts" / "python.exe"]
    for path in [Path(named)] if named else found:
        if path.exists():
            return str(path)
    pytest.skip(f"{kind}_PYTHON does not name the host's Python, and it has no venv")


class WebUI:
    """A host with our extension, and a data folder for it alone."""

    def __init__(self, kind: str, data: Path) -> None:
        self.kind = kind
        self.folder = folder_of(kind)
        self.python = python_of(kind, self.folder)
        self.data = data
        self.extension = data / "extensions" / NAME
        self.models = data / "models"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",  # or what it says of itself stays in its buffer
            "DREAMBOOTH_ENV": str(this_python(data / "engine")),
        }
        self.log = data / "host.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    # -- the extension ---------------------------------------------------------------------------

    def install(self) -> subprocess.CompletedProcess[str]:
        """Puts the clone's files into extensions/ and runs install.py as the host does."""
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
                (self.extension / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.extension / name)
        return subprocess.run(
            [self.python, str(self.extension / "install.py")],
            cwd=self.folder,
            env=self.environment | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def packages(self) -> str:
        """What is installed in the host's Python."""
        command = [self.python, "-m", "pip", "freeze", "--all"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    # -- starting and stopping ------------------------------------------------------------------

    def start(self, *flags: str) -> None:
        """Starts the host and waits until our routes answer."""
        self.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        given = [*f"{COMMON} {FLAGS[self.kind]}".split(), "--port", str(port), *flags]
        command = [self.python, "launch.py", "--data-dir", str(self.data), *given]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_for("Startup time")
        self.wait_for_routes()

    def _wait_for(self, words: str) -> None:
        """Until the host has said so: a request that comes before its routes stand ends A1111."""
        deadline = time.monotonic() + PATIENCE
        while words.encode() not in self.log.read_bytes():
            assert self._process is not None and self._process.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.2)

    def wait_for_routes(self) -> None:
        """Returns when our routes answer, be it with 401."""
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self._process is not None and self._process.poll() is None, self.told()
            try:
                self.get(f"{OURS}/environment")
                return
            except (OSError, Refused) as error:
                if isinstance(error, Refused) and error.code == 401:
                    return
                assert time.monotonic() < deadline, self.told()
                time.sleep(0.3)

    def stop(self) -> None:
        """Ends the host."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def told(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]

    def reload_ui(self) -> None:
        """Presses "Reload UI", as the page does it: through gradio's queue."""
        code = (
            "import json, sys, urllib.request\n"
            "from gradio_client import Client\n"
            "url = sys.argv[1]\n"
            "config = json.load(urllib.request.urlopen(url + '/config'))\n"
            "button = next(c['id'] for c in config['components']\n"
            "              if c['props'].get('elem_id') == 'settings_restart_gradio')\n"
            "def of(d):\n"
            "    return [t[0] if isinstance(t, (list, tuple)) else t for t in d['targets']]\n"
            "index = next(i for i, d in enumerate(config['dependencies']) if button in of(d))\n"
            "Client(url, verbose=False).submit(fn_index=index)\n"
            "import time; time.sleep(3)\n"
        )
        before = self.log.stat().st_size
        subprocess.run(
            [self.python, "-c", code, self.url],
            check=False,
            capture_output=True,
            env=self.environment,
            timeout=60,
        )
        deadline = time.monotonic() + PATIENCE
        while b"Restarting UI" not in self.log.read_bytes()[before:]:
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.2)
        time.sleep(2)
        self.wait_for_routes()

    def token(self) -> str:
        """The API's, as a script finds it; the host writes it when it stands."""
        file = self.data / "outputs" / "dreambooth" / ".api-token"
        return file.read_text().strip() if file.is_file() else ""

    # -- asking ----------------------------------------------------------------------------------

    def call(
        self, path: str, body: Any = None, *, method: str | None = None, user: str = ""
    ) -> Any:
        """A JSON request; raises ``Refused`` for an error."""
        headers = {"content-type": "application/json", "x-dreambooth-token": self.token()}
        if user:
            headers["authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode("utf-8", errors="replace")) from None

    def get(self, path: str, **options: Any) -> Any:
        """A GET request."""
        return self.call(path, **options)

    def ours(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One of our routes."""
        return self.call(OURS + path, body, method=method)

    def draw(self, prompt: str, seed: int = 1, **options: Any) -> Image.Image:
        """A picture by the host's own txt2img."""
        asked = {
            "prompt": prompt,
            "seed": seed,
            "steps": 12,
            "cfg_scale": 3,
            "width": 64,
            "height": 64,
            "sampler_name": "DDIM",
        }
        told = self.call("/sdapi/v1/txt2img", asked | options)
        content = base64.b64decode(told["images"][0])
        return Image.open(io.BytesIO(content)).convert("RGB")

    def train(self, name: str, **values: Any) -> str:
        """Starts a short run on pocket's star; dots in keys are written as ``__``."""
        star = self.data / "outputs" / "dreambooth" / "uploads" / "star"
        shipped = self.extension / "dreambooth_core" / "assets" / "demo" / "star"
        shutil.copytree(shipped, star, dirs_exist_ok=True)
        given = {
            "base.model": str(self.models / "Stable-diffusion" / "pocket.safetensors"),
            "concepts[0].images": str(star),
            "concepts[0].instance_prompt": "a zwx star",
            "data.resolution": 64,
            "data.crop": "center",
            "optim.learning_rate": 3e-3,
            "run.steps": 8,
        }
        given |= {key.replace("__", "."): value for key, value in values.items()}
        run: str = self.ours("/start", {"name": name, "values": given})["run"]
        return run

    def until(self, run: str, *states: str, patience: float = 180.0) -> dict[str, Any]:
        """Waits for one of the states; returns the status."""
        deadline = time.monotonic() + patience
        while True:
            status: dict[str, Any] = self.ours(f"/status/{run}")
            if status["state"] in states:
                return status
            assert time.monotonic() < deadline, status
            assert status["state"] in ("waiting", "running"), status
            time.sleep(0.2)

    def select(self, name: str) -> None:
        """Selects a checkpoint as soon as the host has its GPU back."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ours("/select", {"name": name})
                return
            except Refused as error:
                assert "Busy" in str(error) and time.monotonic() < deadline, error
                time.sleep(0.2)

    def until_published(self, run: str) -> dict[str, Any]:
        """Waits until a finished run is where the host lists it, and the host has its GPU back."""
        self.until(run, "finished", "stopped")
        deadline = time.monotonic() + 30
        while not (status := self.ours(f"/status/{run}"))["published"]:
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        while True:
            with contextlib.suppress(Refused):
                self.draw("a star", steps=1)
                return dict(status)
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def holder(self, run: str) -> int:
        """The process number of a run's worker."""
        lock = Path(self.ours(f"/status/{run}")["path"]) / "worker.lock"
        return int(json.loads(lock.read_bytes()[1:])["pid"])


def convert(*arguments: str | Path) -> None:
    """``dreambooth convert`` in the Python that runs the tests."""
    subprocess.run(
        [sys.executable, "-m", "dreambooth_core", "convert", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def pocket_file(target: Path, *options: str) -> Path:
    """Pocket as one file, with what the host needs beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    convert(ROOT / "dreambooth_core" / "assets" / "pocket", target, *options)
    return target


def full_size_file(target: Path) -> Path:
    """A Stable Diffusion 1 of full size, untrained, in fp16: 2 GB, for hosts that refuse others.

    Weights are as PyTorch begins with them, so that numbers stay in range.
    """
    import torch

    from dreambooth_core.families.stable_diffusion.build import empty
    from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
    from dreambooth_core.families.stable_diffusion.single_write import write_single_file
    from dreambooth_core.families.stable_diffusion.stock import stock_configs
    from dreambooth_core.formats.checkpoints.parts import Component, ModelParts

    torch.manual_seed(0)
    components = {}
    for name, config in stock_configs("sd1").items():
        model = empty(name, config).to_empty(device="cpu")
        for part in model.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        tensors = {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in model.state_dict().items()
            if not key.endswith("position_ids")
        }
        if name.startswith("text"):
            tensors = {
                key if key.startswith("text_") else f"text_model.{key}": tensor
                for key, tensor in tensors.items()
            }
            # Hosts divide by the mean of what this gives.
            tensors["text_model.final_layer_norm.bias"].fill_(0.1)
        components[name] = Component(config, tensors)
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = ModelParts("sd1", components, default_scheduler("sd1", "epsilon"))
    write_single_file(parts, target)
    return target
