"""``dreambooth sample``: adapters by weight, seeds, a run's own result, file names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures, tiny_sd1
from PIL import Image

from dreambooth_core.commands.main import main
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder
from dreambooth_core.jobs.requests import parse_weighted

SIZE = ["--width", "64", "--height", "64", "--steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run whose adapter has a strong effect."""
    base = tiny_sd1(tmp_path_factory.mktemp("base"))
    pictures = draw_pictures(tmp_path_factory.mktemp("pictures"))
    root = tmp_path_factory.mktemp("runs")
    return train(config_for(base, pictures, root, optim__learning_rate=1e-1))


def sample(run: RunFolder, out: Path, *arguments: str) -> list[bytes]:
    """The pictures that the command makes, as pixels."""
    config = run.config.read_text(encoding="utf-8")
    base = next(line.split(":", 1)[1] for line in config.splitlines() if "model:" in line)
    base = base.strip().strip("'\"")
    source = [] if "--run" in arguments else ["--base", base]
    assert (
        main(["sample", "a photo of sks ball", *source, *SIZE, "--out", str(out), *arguments]) == 0
    )
    return [Image.open(file).tobytes() for file in sorted(out.iterdir())]


def assert_alike(first: bytes, second: bytes) -> None:
    """Equal but for the rounding of sums made in another order."""
    one, other = (np.frombuffer(data, dtype=np.uint8).astype(int) for data in (first, second))
    assert np.abs(one - other).max() <= 3
    assert np.abs(one - other).mean() < 0.1


def test_a_weight_scales_the_adapter(run: RunFolder, tmp_path: Path) -> None:
    file = str(run.path / f"{run.name}.safetensors")
    plain = sample(run, tmp_path / "plain")
    assert sample(run, tmp_path / "zero", "--adapter", f"{file}:0") == plain
    full = sample(run, tmp_path / "full", "--adapter", file)
    assert full != plain
    half = sample(run, tmp_path / "half", "--adapter", f"{file}:0.5")
    assert half not in (plain, full)
    assert sample(run, tmp_path / "run", "--run", str(run.path)) == full
    twice = ["--adapter", f"{file}:0.5", "--adapter", f"{file}:0.5"]
    assert_alike(sample(run, tmp_path / "twice", *twice)[0], full[0])


def test_each_picture_has_its_own_seed(run: RunFolder, tmp_path: Path) -> None:
    both = sample(run, tmp_path / "both", "--count", "2", "--seed", "5")
    assert len(set(both)) == 2
    assert_alike(sample(run, tmp_path / "second", "--seed", "6")[0], both[1])


def test_json_names_what_was_made(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(run, tmp_path, "--json", "--seed", "9")
    report = json.loads(capsys.readouterr().out)
    (image,) = report["images"]
    assert Path(image["file"]).is_file()
    assert image["seed"] == 9


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("a.safetensors:-1e-1", "a.safetensors", -0.1),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:0.4", r"C:\loras\a.safetensors", 0.4),
        ("folder:with:colons", "folder:with:colons", 1.0),
    ],
)
def test_the_weight_follows_the_last_colon(text: str, path: str, weight: float) -> None:
    found = parse_weighted(text)
    assert (found.path, found.weight) == (Path(path), weight)


@pytest.mark.parametrize("text", ["", "a:nan", "a:inf"])
def test_a_weight_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_weighted(text)


def test_a_damaged_adapter_is_said_before_the_base_is_loaded(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 20)
    base, adapter = str(tmp_path / "none"), str(tmp_path / "a.safetensors")
    assert main(["sample", "a dog", "--base", base, "--adapter", adapter]) == 2
    assert "a.safetensors: not a safetensors file" in capsys.readouterr().err
