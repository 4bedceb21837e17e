"""Every unknown key, wrong value and odd picture gives one clear line, never a traceback."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures
from PIL import Image

from dreambooth_core.commands.main import main
from dreambooth_core.config.describe import flatten
from dreambooth_core.config.loading import load
from dreambooth_core.config.shapes import paths
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt
from dreambooth_core.options import TrainConfig


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on the error stream."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("key", [k for k in paths(TrainConfig) if "[" not in k and k != "concepts"])
def test_a_misspelled_key_names_the_right_one(key: str) -> None:
    wrong = f"{key}x"
    with pytest.raises(UserError) as caught:
        load(TrainConfig, overrides=[f"{wrong}=1"])
    assert key.rsplit(".", 1)[-1] in caught.value.line
    assert "\n" not in caught.value.line


def test_every_choice_and_range_is_checked() -> None:
    """A word that is no choice and a number beyond its range are refused, for every field."""
    checked = 0
    for section in dataclasses.fields(TrainConfig):
        default = getattr(TrainConfig(), section.name)
        if not dataclasses.is_dataclass(default):
            continue
        for field in dataclasses.fields(default):
            if "info" not in field.metadata:
                continue
            info, key = field.metadata["info"], f"{section.name}.{field.name}"
            wrong = []
            if info.choices and not info.open:
                wrong.append("no-such-word")
            if info.minimum is not None:
                wrong.append(str(info.minimum - 1))
            if info.maximum is not None:
                wrong.append(str(info.maximum + 1))
            for value in wrong:
                with pytest.raises(UserError, match=field.name):
                    load(TrainConfig, overrides=[f"{key}={value}"])
                checked += 1
    assert checked > 60


def test_every_field_has_a_help_text_and_no_label_that_its_name_gives() -> None:
    assert len(flatten(TrainConfig())) > 80
    for section in dataclasses.fields(TrainConfig):
        default = getattr(TrainConfig(), section.name)
        for field in dataclasses.fields(default) if dataclasses.is_dataclass(default) else ():
            info = field.metadata["info"]
            assert info.label != field.name.replace("_", " ").capitalize()
            assert info.help.endswith("."), f"{section.name}.{field.name}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "no-such-file.yaml"], ["no-such-file.yaml"]),
        (["train", "run.stepz=3"], ["stepz", "steps"]),
        (["train", "run.steps=many"], ["steps", "many"]),
        (["train", "method.kind=lorra"], ["lorra", "lora"]),
        (["check", "run.steps=3"], ["concept"]),
        (["check", "concepts=[{images: missing, instance_prompt: a dog}]"], ["missing"]),
        (["sample", "a dog", "--base", "no-such-model.safetensors"], ["no-such-model"]),
        (["sample", "a dog", "--width", "63"], ["--width", "64"]),
        (["inspect", "no-such-file.safetensors"], ["no-such-file"]),
    ],
)
def test_the_command_line_answers_in_one_line(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "runs").exists()


def test_no_pictures_is_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code = main(
        [
            "check",
            f"base.model={base}",
            f"concepts=[{{images: '{empty.as_posix()}', instance_prompt: a dog}}]",
        ]
    )
    assert code == 2
    assert "empty" in one_line(capsys)


def odd_folder(folder: Path) -> Path:
    """Pictures of every odd kind beside two good ones."""
    draw_pictures(folder, 2)
    Image.new("CMYK", (70, 70), (0, 200, 200, 0)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (70, 70), (200, 0, 0, 128)).save(folder / "alpha.png")
    deep = np.linspace(0, 65535, 70 * 70).reshape(70, 70).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    turned = Image.new("RGB", (90, 70), (0, 0, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    frames = [Image.new("P", (70, 70), i) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    (folder / "empty.png").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "notes.md").write_text("shopping list")
    return folder


def test_odd_files_are_taken_or_skipped_with_a_reason(base: Path, tmp_path: Path) -> None:
    pictures = odd_folder(tmp_path / "odd")
    config = config_for(base, pictures, tmp_path / "runs", run__steps=1)
    folder: RunFolder = train(config)
    images = read_receipt(folder)["data"]["concepts"][0]["images"]
    taken = {one["name"] for one in images["taken"]}
    skipped = {one["name"]: one["reason"] for one in images["skipped"]}
    assert {"ball-0.png", "ball-1.png", "cmyk.jpg", "alpha.png", "deep.png"} <= taken
    assert {"broken.jpg", "empty.png"} <= skipped.keys()
    assert all(reason for reason in skipped.values())
    turned = next(one for one in images["taken"] if one["name"] == "turned.jpg")
    assert (turned["width"], turned["height"]) == (70, 90)
    warned = " ".join(e["message"] for e in folder.events if e["kind"] == "warning")
    assert "broken.jpg" in warned
