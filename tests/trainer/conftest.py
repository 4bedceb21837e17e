"""A tiny base and a few pictures, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.observed import Observed, observe
from helpers.runs import config_for
from helpers.tiny import draw_pictures, tiny_sd1


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 in a diffusers folder."""
    return tiny_sd1(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn pictures of a ball."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


Once = Callable[..., Observed]


@pytest.fixture
def once(base: Path, pictures: Path, tmp_path: Path) -> Once:
    """One observed step, or as many as are asked for; ``section__field=value`` changes a field."""

    def run(*, proven: bool = False, **changes: Any) -> Observed:
        config = config_for(base, pictures, tmp_path, **{"run__steps": 1, **changes})
        return observe(config, proven=proven)

    return run


@pytest.fixture(scope="session")
def plain(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """Three observed steps with nothing special about them."""
    return observe(config_for(base, pictures, tmp_path_factory.mktemp("plain"), run__steps=3))
