"""What holds for every test: one thread, no hub, and a cache of its own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.kept_environments import CACHE

from dreambooth_core.deferral import defer

# Before anything imports torch, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"  # that of trio, which selenium brings
# As in the engine's own processes: what is collected need not read torch's compiler, nor all that
# transformers has; what that looks for is kept from one run of the tests to the next.
os.environ["XDG_CACHE_HOME"] = str(CACHE)
defer()
# What is imported and collected stays; searching among it for garbage takes a fifth of that time.
gc.disable()
# No worker of a test waits for another run, but in the tests of that.
os.environ["DREAMBOOTH_SPARE_MINUTES"] = "0"

# A shell starts what it runs in the background (``pytest &``, nohup) with these ignored, and every
# child inherits that: programs that tests stop with a signal would not hear it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # deaf itself, but not its children


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders, one after the other. ``mktemp`` looks through all there are for the next number,
    which are thousands in the end."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in count())


@pytest.fixture(scope="session")
def walks(caches: Iterator[Path]) -> list[Path]:
    """What transformers looks for when it is imported; see dreambooth_core/walked.py."""
    folder = next(caches)
    folder.mkdir()
    every = (CACHE / "dreambooth").glob("transformers-*.json")
    return [Path(shutil.copy2(file, folder)) for file in every]


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], walks: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test alone: nothing of the person who runs it is read or written. A
    process that the test starts finds there what this one knows of transformers."""
    cache = next(caches)
    (cache / "dreambooth").mkdir(parents=True)
    for file in walks:
        os.link(file, cache / "dreambooth" / file.name)
    monkeypatch.setenv("HF_HOME", str(cache / "huggingface"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture(autouse=True, scope="session")
def one_vocabulary() -> Iterator[None]:
    """CLIP's word pieces are sorted out once: that takes as long as three steps of a tiny model,
    and every base that is loaded would do it. What is shared never changes; what a tokenizer
    learns lies beside it."""
    if "dreambooth_core.families.clip_tokenizers" not in sys.modules:
        yield
        return
    from transformers.models.clip import tokenization_clip

    make = tokenization_clip.BPE
    made: dict[tuple[bytes, bytes, str], Any] = {}

    def pieces(*, vocab: Any, merges: Any, **options: Any) -> Any:
        if not (isinstance(vocab, str) and isinstance(merges, str)):
            return make(vocab=vocab, merges=merges, **options)
        key = Path(vocab).read_bytes(), Path(merges).read_bytes(), repr(options)
        if key not in made:
            made[key] = make(vocab=vocab, merges=merges, **options)
        return made[key]

    with mock.patch.object(tokenization_clip, "BPE", pieces):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing is waited for until it is on the disk: whether it would outlive a power cut is for
    the tests that fail it there (tests/disk, tests/faults/disk.py). A run asks thirty times."""
    with mock.patch.object(os, "fsync", lambda _: None):
        yield


@pytest.fixture(autouse=True, scope="module")
def only_what_is_new_is_searched() -> None:
    """Takes what is there out of the search for garbage. Every run begins with such a search, and
    among the objects of the libraries it takes longer than the steps of a tiny model."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def runs_leave_their_garbage() -> Iterator[None]:
    """What a run lets go of is searched for at the end of each module. A search at the end of each
    run takes longer than the steps of a tiny model."""
    if "dreambooth_core.trainer.run" not in sys.modules:
        yield
        return
    with mock.patch("dreambooth_core.trainer.run.gc"):
        yield


def pytest_unconfigure() -> None:
    """Or Python takes apart all that was imported, which takes seconds."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also tests that take a minute each")


LONGEST = (
    "commands/test_demo.py",
    "extension/browser",
    "trainer/test_processes.py",
    "methods/test_families.py",
    "install",
    "faults",
    "comfy_nodes/test_training.py",
    "trainer",
    "families",
)
"""Files and folders whose tests take longest: begun first, so that in the end no process waits
for another."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what was not asked for, and sorts; the order within a file stays."""
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="only with --long"))

    def turn(item: pytest.Item) -> int:
        name = Path(os.path.relpath(item.path, Path(__file__).parent)).as_posix()
        found = (n for n, long in enumerate(LONGEST) if name == long or name.startswith(f"{long}/"))
        return next(found, len(LONGEST))

    items.sort(key=turn)
