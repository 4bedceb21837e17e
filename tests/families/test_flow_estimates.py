"""The memory of every rectified-flow family is estimated from its configurations alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import flow_bases

from dreambooth_core.config.loading import load
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig


@pytest.mark.parametrize("family", flow_bases.WRITERS)
def test_estimated(family: str, tmp_path: Path) -> None:
    base = flow_bases.WRITERS[family](tmp_path / family)
    common = [f"base.model={base.as_posix()}", "data.resolution=64", "run.mixed_precision=bf16"]

    def peak(*more: str) -> int:
        return Planner(load(TrainConfig, overrides=[*common, *more]), device="cuda").needs().peak

    plain = peak()
    assert peak("data.resolution=256", "run.batch_size=4") > plain
    assert peak("method.kind=full", "data.resolution=256") > plain
