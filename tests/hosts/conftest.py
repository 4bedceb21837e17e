"""A real ComfyUI for the tests of its nodes; see ``comfyui_host``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.hosts import comfyui_host
from tests.hosts.comfyui_pack import install
from tests.hosts.comfyui_server import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """ComfyUI with the pack and pocket, started once; nothing is installed meanwhile."""
    host = comfyui_host.folder()
    python = comfyui_host.python(host)
    install(host)
    before = freeze(python)
    with serving(host, env={"DREAMBOOTH_ENV": sys.prefix}) as running:
        yield running
    assert freeze(python) == before


def freeze(python: str) -> str:
    done = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def name(server: Server, request: pytest.FixtureRequest) -> str:
    """A name for runs that no run of the tests before has used."""
    return f"test-comfyui-{request.node.name[5:25].strip('_')}-{time.time_ns():x}"
