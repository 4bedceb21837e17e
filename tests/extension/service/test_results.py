"""What a run made, where the host lists it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from helpers.fake_host import FakeHost
from PIL import Image

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, write_receipt
from extension.service.headers import metadata_of, version_of
from extension.service.results import Results

WORDS = "a photo of sks dog"


def safetensors(path: Path, name: str, **metadata: str) -> Path:
    """A file with one number."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": metadata, name: tensor}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return path


def saved(run: RunFolder, name: str, step: int, *, tensor: str = "lora_unet_a.alpha") -> Path:
    """A result, as the engine writes and tells it, with a validation image."""
    words = {"modelspec.trigger_phrase": WORDS, "ss_output_name": name}
    path = safetensors(run.path / f"{name}.safetensors", tensor, **words)
    run.events.write("saved", path=path.name, step=step, result=True)
    image = run.samples / f"step-{step:06d}-00.png"
    Image.new("RGB", (8, 8), (step, 0, 0)).save(image)
    run.events.write("sample", path=run.relative(image), step=step, prompt="a dog")
    return path


@pytest.fixture
def run(host: FakeHost) -> RunFolder:
    made = RunFolder.create(host.folders().runs, "dog")
    saved(made, "dog-000010", 10)
    saved(made, "dog", 20)
    made.events.write("saved", path="checkpoints/step-000010", step=10, result=False)
    write_receipt(made, result={"file": "dog.safetensors"})
    return made


def test_saved_steps(host: FakeHost, run: RunFolder) -> None:
    found = Results(host).saved(run)
    assert [(one.step, one.kind, one.final) for one in found] == [
        (10, "adapter", False),
        (20, "adapter", True),
    ]
    assert [len(one.samples) for one in found] == [1, 1]


def test_an_adapter_with_all_that_its_card_shows(host: FakeHost, run: RunFolder) -> None:
    results, loras = Results(host), host.folders().loras
    host.choose(weight=0.8)
    made = results.publish(run, None)
    assert (made.name, made.prompt) == ("dog", f"{WORDS} <lora:dog:0.8>")
    assert json.loads((loras / "dog.json").read_text()) == {
        "description": "Step 20 of the run dog, made with DreamBooth.",
        "sd version": "SD1",
        "activation text": WORDS,
        "preferred weight": 0.8,
        "negative text": "",
        "notes": "",
    }
    with Image.open(loras / "dog.png") as image:
        assert image.getpixel((0, 0)) == (20, 0, 0)
    assert host.log == ["refresh"]
    assert results.prompt_for("dog") == made.prompt
    assert results.publish(run, 20) == made  # no second copy
    assert results.publish(run, 10).name == "dog-000010"
    assert [one.published for one in results.saved(run)] == ["dog-000010", "dog"]
    assert not list(loras.glob(".*"))


def test_never_under_a_name_that_the_host_may_know(host: FakeHost, run: RunFolder) -> None:
    """Hosts go on using what they have read under a name."""
    results = Results(host)
    safetensors(host.folders().loras / "dog.safetensors", "lora_unet_other.alpha")
    assert results.publish(run, None).name == "dog-2"
    (run.path / "dog.safetensors").unlink()
    saved(run, "dog", 30)  # the run was resumed
    os.utime(run.path / "dog.safetensors", ns=(1, 1))
    assert results.saved(run)[-1].published == ""
    assert results.publish(run, None).name == "dog-3"


def test_what_the_user_deleted_can_be_published_again(host: FakeHost, run: RunFolder) -> None:
    results = Results(host)
    Path(results.publish(run, None).path).unlink()
    assert results.published(run) == []
    assert results.publish(run, None).name == "dog"


def test_a_fine_tuned_model_brings_its_configuration(host: FakeHost) -> None:
    run = RunFolder.create(host.folders().runs, "tuned")
    saved(run, "tuned", 5, tensor="model.diffusion_model.x")
    (run.path / "tuned").mkdir()
    (run.path / "tuned" / "model_index.json").write_text("{}")
    clip = run.path / "tuned-clip"
    clip.mkdir()
    (clip / "vocab.json").write_text("{}")
    (run.path / "tuned.yaml").write_text(f"version: {clip}\n")
    made = Results(host).publish(run, None)
    folder = host.folders().checkpoints
    assert (made.kind, made.path, made.prompt) == (
        "checkpoint",
        str(folder / "tuned.safetensors"),
        WORDS,
    )
    assert (folder / "tuned.yaml").read_text() == f"version: {folder / 'tuned-clip'}\n"
    assert (folder / "tuned-clip" / "vocab.json").is_file()
    assert (folder / "tuned.png").is_file()


def test_a_learned_token(host: FakeHost) -> None:
    run = RunFolder.create(host.folders().runs, "token")
    saved(run, "sks", 5, tensor="emb_params")
    write_receipt(run, result={"file": "sks.safetensors", "embedding": "sks.safetensors"})
    made = Results(host).publish(run, None)
    assert (made.kind, made.prompt) == ("embedding", "sks")
    assert Path(made.path).parent == host.folders().embeddings


def test_an_adapter_and_its_token(host: FakeHost) -> None:
    run = RunFolder.create(host.folders().runs, "pivot")
    for step, ending in ((10, "-000010"), (20, "")):
        saved(run, f"pivot{ending}", step)
        safetensors(run.path / f"sks{ending}.safetensors", "emb_params")
    results, embeddings = Results(host), host.folders().embeddings
    assert results.publish(run, 20).prompt == f"{WORDS} <lora:pivot:1>"
    assert [path.name for path in embeddings.iterdir()] == ["sks.safetensors"]
    # Under another name the host knows it by that.
    assert results.publish(run, 10).prompt == "a photo of sks-000010 dog <lora:pivot-000010:1>"
    assert (embeddings / "sks-000010.safetensors").is_file()


def test_nothing_to_publish(host: FakeHost, run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no such saved step. Saved: 10, 20"):
        Results(host).publish(run, 15)
    with pytest.raises(UserError, match="no adapter named"):
        Results(host).prompt_for("../dog")


def test_without_preview(host: FakeHost, run: RunFolder) -> None:
    host.choose(preview=False)
    made = Results(host).publish(run, None)
    assert not Path(made.path).with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_v2": "True"}, "SD2"),
        ({"ss_v2": "False"}, "SD1"),
        ({}, "SD1"),
    ],
)
def test_the_version_by_the_hosts_rule(
    tmp_path: Path, metadata: dict[str, str], version: str
) -> None:
    assert version_of(safetensors(tmp_path / "a.safetensors", "x", **metadata)) == version


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x08" * 40])
def test_other_files_have_no_metadata(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert metadata_of(path) == {}
    assert metadata_of(tmp_path / "none") == {}
