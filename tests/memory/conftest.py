"""A tiny base and a few images, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import draw_pictures, tiny_sd1


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 in a diffusers folder."""
    return tiny_sd1(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn images of a ball."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))
