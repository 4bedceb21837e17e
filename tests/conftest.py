"""What holds for every test: one thread, no hub, and a cache of its own."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import pytest

# Before anything imports torch, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# No worker of a test waits for another run, but in the tests of that.
os.environ["DREAMBOOTH_SPARE_MINUTES"] = "0"

# A shell starts what it runs in the background (``pytest &``, nohup) with these ignored, and every
# child inherits that: programs that tests stop with a signal would not hear it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # deaf itself, but not its children


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test alone: nothing of the person who runs it is read or written."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HF_HOME", str(cache / "huggingface"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(cache / "dreambooth"))
    return cache


@pytest.fixture(autouse=True, scope="module")
def only_what_is_new_is_searched() -> None:
    """Takes what is there out of the search for garbage. Every run begins with such a search, and
    among the objects of the libraries it takes longer than the steps of a tiny model."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Hypothesis, imported now at the latest, looks for what holds its random numbers."""
    gc.unfreeze()


LONGEST = (
    "test_demo.py",
    "extension/browser",
    "trainer/test_processes.py",
    "methods/test_families.py",
    "install",
    "faults",
    "comfy_nodes/test_training.py",
    "trainer",
    "families",
    "formats/checkpoints",
)
"""Files and folders whose tests take longest: begun first, so that in the end no process waits
for another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts; the order within a file stays."""

    def turn(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        found = (n for n, long in enumerate(LONGEST) if name == long or name.startswith(f"{long}/"))
        return next(found, len(LONGEST))

    items.sort(key=turn)
