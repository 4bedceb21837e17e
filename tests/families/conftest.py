"""What each proof found, and the CPU seconds of each test, in the file of ``--junitxml``: from it
``python -m tools.families`` makes the table of docs/models.md."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from families import flow_proofs

BEGUN = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[BEGUN] = time.process_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    done = yield
    item.user_properties.append(("cpu", round(time.process_time() - item.stash[BEGUN], 2)))
    item.user_properties += flow_proofs.FOUND
    flow_proofs.FOUND.clear()
    return done
