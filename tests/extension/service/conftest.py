"""A host to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fake_host import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    made = FakeHost(tmp_path / "webui")
    for folder in (made.folders().loras, made.folders().checkpoints):
        folder.mkdir(parents=True)
    return made
