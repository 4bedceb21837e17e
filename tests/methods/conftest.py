"""Reduced bases, each made once, and a few pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from helpers.families import reduced_base
from helpers.tiny import draw_pictures, tiny_sd1


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of base."""
    return cache(lambda kind: reduced_base(kind, tmp_path_factory.mktemp(kind), slim=True))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 in a diffusers folder."""
    return tiny_sd1(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pictures of a ball."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 2)
