"""``dreambooth extract``'s options; whole round trips stand with ``bake``."""

from __future__ import annotations

import argparse

import pytest
import torch

from dreambooth_core.commands import extract
from dreambooth_core.commands.options import add_options, from_arguments
from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.extract import Extraction
from dreambooth_core.formats.adapters.lowrank import Keep


def options(*argv: str) -> Extraction:
    parser = argparse.ArgumentParser()
    add_options(parser, extract.Options)
    args = parser.parse_args(["base", "tuned", "out", *argv])
    return extract._options(from_arguments(extract.Options, args))


def test_defaults() -> None:
    assert options().keep == Keep(rank=32)
    assert options("--energy", "0.9").keep == Keep(energy=0.9)
    assert options("--energy", "0.9", "--rank", "4").keep == Keep(4, 0.9)
    assert options().dtype == torch.float32
    assert options("--dtype", "bf16").dtype == torch.bfloat16


def test_blocks_are_ranks_or_energies() -> None:
    found = options("--block", "down_blocks.1=8", "--block", "text_encoder=0.5").blocks
    assert found == {"unet.down_blocks.1": Keep(rank=8), "text_encoder": Keep(energy=0.5)}


@pytest.mark.parametrize("argv", [["--rank", "0"], ["--energy", "2"], ["--block", "x"]])
def test_impossible_wishes(argv: list[str]) -> None:
    with pytest.raises(UserError):
        options(*argv)
