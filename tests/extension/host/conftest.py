"""The stand-in for the WebUI's modules, new for each test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

STAND_IN = Path(__file__).parents[2] / "helpers" / "a1111"
HOSTS = ("modules", "modules_forge", "backend", "networks", "dreambooth_reduced")

Module = Callable[[str], ModuleType]


def forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in HOSTS:
            del sys.modules[name]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Imports one of the stand-in's modules: ``module("sd_models")``."""
    forget()
    monkeypatch.setenv("STAND_IN_DATA", str(tmp_path / "webui"))
    monkeypatch.syspath_prepend(STAND_IN)
    yield lambda name: importlib.import_module(f"modules.{name}")
    forget()
