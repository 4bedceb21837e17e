"""The fastest kernel is found once; one that fails or wants more memory is no choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreambooth_core.trainer.kernels import SDPA, Cost, fastest, sdpa_by


class Trials(dict[str, Callable[[], Cost]]):
    """Trials that cost what is said, and what was tried."""

    def __init__(self, **costs: Cost | Exception) -> None:
        self.tried: list[str] = []
        super().__init__({name: self._trial(name, cost) for name, cost in costs.items()})

    def _trial(self, name: str, cost: Cost | Exception) -> Callable[[], Cost]:
        def trial() -> Cost:
            self.tried.append(name)
            if isinstance(cost, Exception):
                raise cost
            return cost

        return trial


def test_the_fastest_is_found_once_for_each_key(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "attention.json"
    trials = Trials(flash=Cost(2.0, 100), cudnn=Cost(1.0, 104), efficient=Cost(3.0, 100))
    assert fastest(trials, file, "a") == "cudnn"
    assert trials.tried == ["flash", "cudnn", "efficient"]
    assert fastest(trials, file, "a") == "cudnn" and len(trials.tried) == 3
    assert fastest(trials, file, "b") == "cudnn" and len(trials.tried) == 6
    assert json.loads(file.read_text())["a"]["seconds"]["flash"] == 2.0


def test_what_fails_or_takes_more_memory_is_no_choice(tmp_path: Path) -> None:
    trials = Trials(
        flash=torch.OutOfMemoryError("no room"), cudnn=Cost(1.0, 200), efficient=Cost(3.0, 100)
    )
    assert fastest(trials, tmp_path / "a.json", "a") == "efficient"
    assert fastest(Trials(flash=RuntimeError("no kernel")), tmp_path / "b.json", "a") is None
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"a": {"fastest": "cudnn"}}',
        '{"a": {"fastest": ["flash"], "seconds": {}}}',
        '{"a": {"fastest": "gone", "seconds": {}}}',
    ],
)
def test_a_file_that_is_none_is_written_anew(tmp_path: Path, content: str) -> None:
    file = tmp_path / "attention.json"
    file.write_text(content)
    trials = Trials(flash=Cost(1.0, 1))
    assert fastest(trials, file, "a") == "flash" and trials.tried == ["flash"]
    assert json.loads(file.read_text())["a"]["fastest"] == "flash"


@pytest.mark.parametrize("name", SDPA)
def test_a_kernel_is_used_inside_and_no_longer(name: str) -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa_by(name):
        assert torch.backends.cuda.flash_sdp_enabled() == (name == "flash")
        assert torch.backends.cuda.cudnn_sdp_enabled() == (name == "cudnn")
        assert torch.backends.cuda.math_sdp_enabled()
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    assert after == before
