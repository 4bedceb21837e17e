"""``dreambooth merge``: weights on the command line, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.formats.adapters.merge import METHODS
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import relative, weights_for

UNET, TEXT = (
    "unet.mid_block.attentions.0.proj_in",
    ("text_encoder.text_model.encoder.layers.0.mlp.fc1"),
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for i, layout in enumerate(("kohya", "diffusers")):
        modules = {
            name: weights_for(torch.ones(16, 12), "lora", rank=2 + i, alpha=1.0 + i, seed=i)
            for name in (UNET, TEXT)
        }
        adapter = Adapter(modules, {"modelspec.trigger_phrase": f"word{i}"}, "sd1")
        write_adapter(adapter, tmp_path / f"{i}.safetensors", layout)
    return str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")


def change(path: str | Path, name: str) -> torch.Tensor:
    return read_adapter(path).modules[name].delta()


def test_the_sum(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one, other = files
    out = tmp_path / "out.safetensors"
    argv = ["merge", f"{one}:0.7", f"{other}:-0.4", "--out", str(out), "--json"]
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "cat"
    assert told["ranks"] == [5]
    assert told["modules"] == 2
    for name in (UNET, TEXT):
        expected = 0.7 * change(one, name) - 0.4 * change(other, name)
        assert relative(change(out, name), expected) < 1e-6
    assert read_adapter(out).metadata["modelspec.trigger_phrase"] == "word0"


def test_other_weights_for_text_encoders_and_blocks(files: tuple[str, str], tmp_path: Path) -> None:
    one, other = files
    out = tmp_path / "out.safetensors"
    argv = ["merge", one, f"{other}:0.5", "--te-weight", "0.25", "0", "--out", str(out)]
    assert main([*argv, "--block", "2:mid_block=2", "--dtype", "fp16"]) == 0
    assert read_adapter(out).dtype == torch.float16
    assert relative(change(out, TEXT), 0.25 * change(one, TEXT)) < 1e-3
    assert relative(change(out, UNET), change(one, UNET) + change(other, UNET)) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(
    method: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.safetensors"
    argv = ["merge", files[0], files[0], "--method", method, "--rank", "2", "--out", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert method in text
    assert ("warning" in text) == (method != "cat" and not method.endswith("svd"))
    assert set(read_adapter(out).modules) == {UNET, TEXT}


def test_a_name_with_a_colon(files: tuple[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "a:b.safetensors"
    try:
        odd.write_bytes(Path(files[0]).read_bytes())
    except OSError:
        pytest.skip("this file system has no colons in names")
    assert main(["merge", str(odd), f"{odd}:0.5", "--out", str(tmp_path / "o.safetensors")]) == 0


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--te-weight", "1", "2", "3"], "3 weights"),
        (["--block", "mid_block"], "not a block"),
        (["--block", "9:mid_block=1"], "no adapter 9"),
        (["--method", "linear"], "ranks [2, 3]"),
        (["--method", "ties_svd", "--density", "2"], "density"),
        (["nothing.safetensors"], "no such file"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str],
    word: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out.safetensors"
    extra = [a for a in more if a.endswith(".safetensors")]
    options = [a for a in more if a not in extra]
    assert main(["merge", *files, *extra, "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not out.exists()
