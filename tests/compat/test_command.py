"""``dreambooth compat``: what is printed, how it ends, and what becomes of an earlier run."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.reduced_models import reduced_parts

from dreambooth_core.commands.main import main
from dreambooth_core.compat import launch
from dreambooth_core.compat.launch import prepare
from dreambooth_core.compat.translate import translate
from dreambooth_core.config.loading import load
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import Proposal, RunFolder
from dreambooth_core.options import TrainConfig


def flags(out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path=pocket",
        "--instance_data_dir=pictures",
        "--instance_prompt=a photo of sks ball",
        "--max_train_steps=4",
        f"--output_dir={out}",
        *more,
    ]


def test_the_dialect_and_warnings_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = flags(tmp_path / "out", "--use_lora", "--no_tracemalloc", "--report_to=wandb")
    assert main(["compat", "train_dreambooth", "--dry-run", *line]) == 0
    printed = capsys.readouterr()
    assert "train_dreambooth: peft's dialect (by --no_tracemalloc, --use_lora)" in printed.err
    assert "--no_tracemalloc: memory is not traced" in printed.err
    assert "warning: --report_to: Weights & Biases is not installed" in printed.err
    (tmp_path / "made.yaml").write_text(printed.out, encoding="utf-8")
    config = load(TrainConfig, files=[tmp_path / "made.yaml"])
    assert (config.method.kind, config.method.alpha) == ("lora", 32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["train_dreambooth", "--lerning_rate=1"], "Did you mean --learning_rate?"),
        (["train_dreambooth_flax", "--seed=1"], "Flax is not used here. TPUs are not supported"),
        (["train_dreambooth", "--skip_save_text_encoder"], "--skip_save_text_encoder: it is for"),
        (["train_dreambooth"], "--pretrained_model_name_or_path, --instance_data_dir"),
    ],
)
def test_wrong_command_lines_end_with_2(
    line: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compat", *line]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert len(printed.strip().splitlines()) == 1


def test_help_lists_the_scripts_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compat", "train_dreambooth_lora", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--lora_dropout" in printed and "method.dropout" in printed
    assert "--concepts_list" not in printed


def test_resuming_equals_training_through(typed: Any, tmp_path: Path) -> None:
    def weights(out: Path) -> dict[str, torch.Tensor]:
        return read_tensors(out / "pytorch_lora_weights.safetensors")

    through = typed("train_dreambooth_lora", checkpointing_steps=2, out=tmp_path / "through")
    again = tmp_path / "again"
    typed("train_dreambooth_lora", checkpointing_steps=2, max_train_steps=3, out=again)
    typed("train_dreambooth_lora", "--resume_from_checkpoint=latest", out=again)
    steps = [e["step"] for e in RunFolder(again).events if e.get("stage") == "train"]
    assert steps == [1, 2, 3, 3, 4]
    one, other = weights(through), weights(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_earlier_run_is_set_aside(tmp_path: Path) -> None:
    told: list[str] = []
    translation = translate("train_dreambooth", flags(tmp_path / "out"))
    folder, _ = prepare(translation, told.append)
    folder.events.write("started", step=0)
    (folder.checkpoints / "step-000002").mkdir()
    assert told == []
    prepare(translation, told.append)
    assert "earlier-1" in told[0]
    assert (folder.path / "earlier-1" / "checkpoints" / "step-000002").is_dir()
    assert folder.events.size() == 0
    assert list(folder.checkpoints.iterdir()) == []


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    translation = translate("train_dreambooth", flags(tmp_path / "out"))
    folder, _ = prepare(translation, lambda _: None)
    assert folder.lock.acquire()
    other = RunFolder(folder.path).lock
    if not other.is_held():
        pytest.skip("locks of one process do not exclude each other here")
    with pytest.raises(UserError, match="a run is at work there"):
        prepare(translation, lambda _: None)
    assert folder.config.is_file()


def test_other_processes_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translation = translate("train_dreambooth", flags(tmp_path / "out"))
    from dreambooth_core.config.loading import dump

    folder = RunFolder(translation.folder).make()
    monkeypatch.setenv("RANK", "1")

    def write_late() -> None:
        time.sleep(0.3)
        folder.config.write_text(dump(translation.config, help=True), encoding="utf-8")

    writer = threading.Thread(target=write_late)
    begun = time.monotonic()
    writer.start()
    assert prepare(translation, lambda _: None) == (folder, None)
    writer.join()
    assert time.monotonic() - begun >= 0.3
    folder.config.unlink()
    text = dump(translation.config, help=True)
    proposal = Proposal.make(folder, {folder.config.name: text})
    found = prepare(translation, lambda _: None)[1]
    assert found is not None and found.path == proposal.path
    proposal.withdraw()
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    with pytest.raises(UserError, match="has written no configuration"):
        prepare(translation, lambda _: None)


def test_conversions_there_and_back(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single, folder = tmp_path / "model.safetensors", tmp_path / "dumped"
    original = "convert_diffusers_to_original_stable_diffusion"
    line = [f"--model_path={base}", f"--checkpoint_path={single}", "--use_safetensors"]
    assert main(["compat", original, *line]) == 0
    assert "--use_safetensors: the ending of --checkpoint_path says it" in capsys.readouterr().err
    assert any(name.startswith("cond_stage_model.transformer.") for name in read_tensors(single))

    line = [
        f"--checkpoint_path={single}",
        f"--dump_path={folder}",
        "--scheduler_type=ddim",
        "--from_safetensors",
        "--upcast_attention",
        "--device=cpu",
    ]
    diffusers = "convert_original_stable_diffusion_to_diffusers"
    assert main(["compat", diffusers, *line]) == 0
    told = capsys.readouterr().err
    assert "--from_safetensors: found from the file" in told
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert json.loads((folder / "unet" / "config.json").read_text())["upcast_attention"] is True
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    one, other = read_tensors(base / name), read_tensors(folder / name)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["--model_path=x", "--checkpoint_path=y"], "must end in .safetensors or .ckpt"),
        (["--model_path=x", "--checkpoint_path=y.ckpt", "--use_safetensors"], "end in .safetens"),
        (["--model_path=x"], "--checkpoint_path must be given"),
    ],
)
def test_conversions_that_cannot_be(
    line: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compat", "convert_diffusers_to_original_stable_diffusion", *line]) == 2
    assert told in capsys.readouterr().err


def test_conversion_flags_that_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--checkpoint_path=x", "--dump_path=y", "--controlnet", "--stable_unclip=img2img"]
    assert main(["compat", "convert_original_stable_diffusion_to_diffusers", *line]) == 2
    printed = capsys.readouterr().err
    assert "--controlnet: " in printed and "--stable_unclip: " in printed


@pytest.mark.parametrize(("flags", "dtype"), [([], torch.float32), (["--half"], torch.float16)])
def test_converting_writes_fp32_unless_half_is_asked_for(
    flags: list[str], dtype: torch.dtype, tmp_path: Path
) -> None:
    source = write_single_file(
        reduced_parts("sd1", dtype=torch.float16), tmp_path / "a.safetensors"
    )
    line = [f"--checkpoint_path={source.path}", f"--dump_path={tmp_path / 'out'}", *flags]
    assert main(["compat", "convert_original_stable_diffusion_to_diffusers", *line]) == 0
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (tmp_path / "out" / part).glob("*.safetensors")
        assert {t.dtype for t in read_tensors(file).values()} == {dtype}


def test_a_script_for_sdxl_refuses_an_sd1_base(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "--pretrained_model_name_or_path=pocket",
        f"--instance_data_dir={pictures}",
        "--instance_prompt=a ball",
        f"--output_dir={tmp_path / 'out'}",
    ]
    assert main(["compat", "train_dreambooth_lora_sdxl", *line]) == 2
    printed = capsys.readouterr().err
    assert "trains Stable Diffusion XL, and this is" in printed
    assert "Use train_dreambooth_lora, or take an SDXL base" in printed
    assert not (tmp_path / "out").exists()
