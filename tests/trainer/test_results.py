"""What comes out of a run: it changes pictures, reloads exactly, and says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import PRIOR, config_for, folder_for, go_on, train, training_of

from dreambooth_core.errors import TrainingFailed, UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import read_metadata, read_tensors
from dreambooth_core.jobs import RunFolder, read_receipt
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer import results

SETTINGS = SamplingSettings(steps=2, guidance=2.0, width=64, height=64)


def predict(parts: Components) -> torch.Tensor:
    """The UNet's answer to a fixed question."""
    with torch.no_grad():
        conditioning = parts.family.encode(parts, ["a photo of sks ball"])
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        output: torch.Tensor = parts.family.predict(
            parts, noisy, torch.tensor([500]), conditioning, []
        )
    return output


@pytest.mark.parametrize(
    ("targets", "kind"),
    [("attention", "lora"), *(("all", kind) for kind in ("lora", "dora", "loha", "lokr", "oft"))],
)
def test_a_saved_adapter_gives_what_the_trainer_had(
    base: Path, pictures: Path, tmp_path: Path, kind: str, targets: str
) -> None:
    """Here of all layers; of those in attention every method's result is proved below."""
    config = config_for(
        base,
        pictures,
        tmp_path,
        method__kind=kind,
        method__target_modules=targets,
        method__alpha=2,
        method__train_text_encoder="true",
        optim__learning_rate=1e-2,
    )
    training = training_of(config, folder_for(config))
    for _ in range(3):
        training.train_step()
    kept = training.results.write("kept", training.step)
    own = predict(training.parts)
    parts = load_base(BaseOptions(model=str(base)))
    plain = predict(parts)
    stack = AdapterStack(parts.models)
    stack.load("result", read_adapter(kept))
    loaded = predict(parts)
    assert (loaded - own).abs().max() <= 1e-5
    assert (loaded - plain).abs().max() > 1e-3
    stack.clear()
    assert torch.equal(predict(parts), plain)


def test_an_adapter_changes_the_picture_and_weight_0_does_not(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = train(config_for(base, pictures, tmp_path, optim__learning_rate=1e-1))
    parts = load_base(BaseOptions(model=str(base)))
    stack = AdapterStack(parts.models)

    def picture() -> bytes:
        return generate(parts, ["a photo of sks ball"], [5], SETTINGS)[0].tobytes()

    plain = picture()
    stack.load("result", read_adapter(folder.path / f"{folder.name}.safetensors"))
    assert picture() != plain
    stack.unload("result")
    assert picture() == plain


def test_only_what_is_trained_changes(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = train(config_for(base, pictures, tmp_path, method__kind="full"))
    before = read_tensors(base / "unet" / "diffusion_pytorch_model.safetensors")
    after = read_tensors(folder.path / folder.name / "unet" / "diffusion_pytorch_model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before)
    for part in ("vae", "text_encoder"):
        one, other = (
            read_tensors(next((root / part).glob("*.safetensors")))
            for root in (base, folder.path / folder.name)
        )
        frozen = {n.removeprefix("text_model."): t for n, t in one.items()}
        stored = {n.removeprefix("text_model."): t for n, t in other.items()}
        assert all(torch.equal(frozen[n], stored[n]) for n in frozen if "position_ids" not in n)


def test_a_fine_tuned_model_loads_as_one_file(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"method__kind": "full", "optim__learning_rate": 1e-3}
    folder = train(config_for(base, pictures, tmp_path, **changes))
    one, other = (
        load_base(BaseOptions(model=str(path)))
        for path in (folder.path / folder.name, folder.path / f"{folder.name}.safetensors")
    )
    plain = predict(load_base(BaseOptions(model=str(base))))
    assert (predict(one) - predict(other)).abs().max() <= 1e-5
    assert (predict(one) - plain).abs().max() > 1e-4


def test_the_file_says_what_it_is(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = train(config_for(base, pictures, tmp_path, method__rank=3, method__alpha=6))
    file = folder.path / f"{folder.name}.safetensors"
    found = read_metadata(file)
    assert found["ss_network_dim"] == "3"
    assert found["ss_network_alpha"] in ("6", "6.0")
    assert found["ss_output_name"] == folder.name
    assert found["ss_steps"] == "4"
    assert found["modelspec.trigger_phrase"] == "a photo of sks ball"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    tensors = read_tensors(file)
    assert all(name.startswith("lora_unet_") for name in tensors)
    alphas = {float(t) for name, t in tensors.items() if name.endswith(".alpha")}
    assert alphas == {6.0}


def test_the_receipt_says_what_ran(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = train(config_for(base, pictures, tmp_path, **PRIOR), proven=True)
    receipt = read_receipt(folder)
    caption = receipt["first_captions"]["instance"]
    assert caption["text"] == "a photo of sks ball"
    assert caption["tokens"] == ["a</w>", "photo</w>", "of</w>", "sks</w>", "ball</w>"]
    assert receipt["first_captions"]["class"]["text"] == "a photo of a ball"
    assert receipt["base"]["family"] == "sd1"
    assert receipt["result"]["steps"] == 4
    proof = receipt["proof"]
    assert proof["passed"]
    assert proof["reader"] == "diffusers"
    assert 0 <= proof["difference"] <= proof["tolerance"] < proof["effect"]
    assert [len(digest) for digest in proof["sha256"].values()] == [64]


def test_class_images_are_made_once(base: Path, pictures: Path, tmp_path: Path) -> None:
    def made(folder: RunFolder) -> int:
        return sum(e.get("stage") == "class_images" for e in folder.events)

    config = config_for(base, pictures, tmp_path, run__steps=1, **PRIOR)
    assert made(train(config)) > 0
    assert made(train(config)) == 0
    config.prior.num_class_images = 5
    folder = train(config)
    assert [e["steps"] for e in folder.events if e.get("stage") == "class_images"][-1] == 2


def test_validation_images_do_not_disturb_training(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    plain = train(config_for(base, pictures, tmp_path))
    changes = {
        "validation__prompts": "[a ball, a red ball]",
        "validation__every_steps": 2,
        "validation__num_inference_steps": 2,
        "validation__scheduler": "euler_a",
    }
    watched = train(config_for(base, pictures, tmp_path, **changes))
    samples = [e for e in watched.events if e["kind"] == "sample"]
    assert [e["step"] for e in samples] == [0, 0, 2, 2, 4, 4]
    assert all((watched.path / e["path"]).is_file() for e in samples)
    one, other = (read_tensors(f.path / f"{f.name}.safetensors") for f in (plain, watched))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failed_preview_is_a_warning(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory left for a picture")

    monkeypatch.setattr("dreambooth_core.trainer.validation.generate", broken)
    folder = train(config_for(base, pictures, tmp_path, validation__prompts="[a ball]"))
    warnings = [e["message"] for e in folder.events if e["kind"] == "warning"]
    assert any("no memory left for a picture" in message for message in warnings)
    assert read_receipt(folder)["result"]["steps"] == 4


def test_there_is_a_curve_that_covers_a_resumed_run(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    config = config_for(base, pictures, tmp_path, save__every_steps=2)
    folder = train(config, decorated=True)
    assert (folder.path / "loss.png").stat().st_size > 5000
    go_on(folder, run__resume=2, decorated=True)
    assert max(e["step"] for e in folder.events if e.get("stage") == "train") == 4


def test_tensorboard_gets_the_curves(base: Path, pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(config_for(base, pictures, tmp_path, log__tensorboard="true"))
    board = EventAccumulator(str(folder.logs))
    board.Reload()
    assert len(board.Scalars("loss/total")) == 4
    assert board.Scalars("learning rate")[0].value == pytest.approx(1e-3)


def test_the_folder_holds_the_effective_configuration(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path, method__rank=3))
    assert "rank: 3" in folder.config.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", METHODS)
def test_every_result_is_proved(base: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    changes = {"method__kind": kind, "save__precision": "fp16", "optim__learning_rate": 1e-2}
    folder = train(config_for(base, pictures, tmp_path, **changes), proven=True)
    assert read_receipt(folder)["proof"]["passed"]


@pytest.mark.parametrize("damage", ["equals the base", "nan", "another"])
def test_a_wrong_file_fails_the_run(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    real = results.write_adapter

    def wrong(adapter: Adapter, *args: Any, **kwargs: Any) -> Path:
        for number, weights in enumerate(adapter.modules.values()):
            assert isinstance(weights, LoraWeights)
            if damage == "equals the base":
                weights.up.zero_()
            elif damage == "another":
                weights.up.mul_(3.0)
            elif number == 0:
                weights.up[0, 0] = float("nan")
        return real(adapter, *args, **kwargs)

    monkeypatch.setattr(results, "write_adapter", wrong)
    # NaN does not even reach the file.
    with pytest.raises((TrainingFailed, UserError), match=r"not what was trained|not saved: .*NaN"):
        train(config_for(base, pictures, tmp_path, optim__learning_rate=1e-2), proven=True)
