"""The code that tutorials run after training, on what training through their flags has left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftModel
from transformers import CLIPTextModel

from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder

PROMPT = "a photo of sks ball"


def pipeline(folder: Path) -> Any:
    """The tutorial's first line."""
    made = DiffusionPipeline.from_pretrained(str(folder))
    made.set_progress_bar_config(disable=True)
    return made


def text_output(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    return found


def unet_output(pipe: Any, context: torch.Tensor, **more: Any) -> torch.Tensor:
    """The UNet's answer to a fixed question."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = pipe.unet(noisy, torch.tensor([500]), context, **more).sample
    return found


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-4)


@pytest.fixture(scope="module")
def full(typed: Any) -> Path:
    """diffusers' train_dreambooth with the text encoder."""
    return typed(
        "train_dreambooth",
        "--train_text_encoder",
        checkpointing_steps=2,
        checkpoints_total_limit=1,
        learning_rate=1e-3,
        whole=True,
    )


def test_a_pipeline_loads_from_the_output_folder(full: Path, base: Path) -> None:
    trained, plain = pipeline(full), pipeline(base)
    assert isinstance(trained, StableDiffusionPipeline)
    image = trained(PROMPT, num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)
    assert differ(text_output(trained), text_output(plain))
    context = text_output(plain)
    assert differ(unet_output(trained, context), unet_output(plain, context))
    assert trained.unet.dtype == torch.float32
    assert type(trained.scheduler) is type(plain.scheduler)


def test_networks_load_from_a_checkpoint(full: Path, base: Path) -> None:
    checkpoint = full / "checkpoint-4"
    unet = UNet2DConditionModel.from_pretrained(str(checkpoint / "unet"))
    text = CLIPTextModel.from_pretrained(str(checkpoint / "text_encoder"))
    built = DiffusionPipeline.from_pretrained(str(base), unet=unet, text_encoder=text)
    final = pipeline(full)
    assert torch.equal(text_output(built), text_output(final))
    context = text_output(final)
    assert torch.equal(unet_output(built, context), unet_output(final, context))
    assert not (full / "checkpoint-2").exists()  # --checkpoints_total_limit=1


def test_the_output_folder_is_the_run(full: Path) -> None:
    assert RunFolder.open(full).events.size() > 0
    assert list((full / "logs").glob("events.out.tfevents.*"))
    assert (full / "loss.png").is_file()


@pytest.fixture(scope="module")
def lora(typed: Any) -> Path:
    """diffusers' train_dreambooth_lora with the text encoder."""
    return typed("train_dreambooth_lora", "--train_text_encoder", rank=3, checkpointing_steps=2)


@pytest.mark.parametrize("where", [".", "checkpoint-2", "checkpoint-4"])
def test_load_lora_weights(lora: Path, base: Path, where: str) -> None:
    pipe = pipeline(base)
    plain_text = text_output(pipe)
    plain = unet_output(pipe, plain_text)
    pipe.load_lora_weights(str(lora / where), weight_name="pytorch_lora_weights.safetensors")
    assert differ(text_output(pipe), plain_text)
    assert differ(unet_output(pipe, plain_text), plain)
    assert pipe.unet.peft_config["default_0"].r == 3
    assert pipe.unet.peft_config["default_0"].lora_alpha == 3
    assert pipe(PROMPT, num_inference_steps=1, height=64, width=64).images
    pipe.unload_lora_weights()
    assert torch.equal(unet_output(pipe, plain_text), plain)


def test_load_lora_weights_needs_no_name(lora: Path, base: Path) -> None:
    named, bare = pipeline(base), pipeline(base)
    named.load_lora_weights(str(lora), weight_name="pytorch_lora_weights.safetensors")
    bare.load_lora_weights(str(lora))
    context = text_output(named)
    assert torch.equal(text_output(bare), context)
    assert torch.equal(unet_output(bare, context), unet_output(named, context))


def test_sdxl_lora(typed: Any, xl_base: Path) -> None:
    out = typed(
        "train_dreambooth_lora_sdxl",
        "--output_kohya_format",
        "--random_flip",
        "--train_text_encoder",
        pretrained_model_name_or_path=xl_base,
        text_encoder_lr=1e-2,
        snr_gamma=5.0,
        max_train_steps=2,
    )
    pipe = pipeline(xl_base)
    with torch.no_grad():
        plain = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)[0]
    more = {
        "added_cond_kwargs": {
            "text_embeds": torch.zeros(1, 64),
            "time_ids": torch.zeros(1, 6),
        }
    }
    before = unet_output(pipe, plain, **more)
    pipe.load_lora_weights(str(out), weight_name="pytorch_lora_weights.safetensors")
    with torch.no_grad():
        trained = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)[0]
    assert differ(trained, plain)
    assert differ(unet_output(pipe, plain, **more), before)
    kohya = out / "pytorch_lora_weights_kohya.safetensors"
    names = read_tensors(kohya)
    assert {n.split("_")[1] for n in names} == {"unet", "te1", "te2"}
    one, other = read_adapter(kohya), read_adapter(out / "pytorch_lora_weights.safetensors")
    assert set(one.modules) == set(other.modules)


@pytest.fixture(scope="module")
def dog_and_toy(typed: Any) -> tuple[Path, Path]:
    """Two runs of peft's lora_dreambooth with the flags of its readme."""
    dog, toy = (
        typed(
            "train_dreambooth",
            "--train_text_encoder",
            "--use_lora",
            lora_r=4,
            lora_alpha=7,
            lora_text_encoder_r=3,
            lora_text_encoder_alpha=5,
            num_dataloader_workers=1,
            max_train_steps=2,
            seed=seed,
        )
        for seed in (1, 2)
    )
    return dog, toy


def test_pefts_notebook(dog_and_toy: tuple[Path, Path], base: Path) -> None:
    dog, toy = dog_and_toy
    config = LoraConfig.from_pretrained(str(dog / "text_encoder"))
    assert (config.r, config.lora_alpha) == (3, 5)
    # A base in a folder of this machine has no name that others could load it by.
    assert config.base_model_name_or_path is None
    pipe = StableDiffusionPipeline.from_pretrained(base, requires_safety_checker=False)
    plain = text_output(pipe)
    question = unet_output(pipe, plain)
    pipe.unet = PeftModel.from_pretrained(pipe.unet, str(dog / "unet"), adapter_name="dog")
    pipe.text_encoder = PeftModel.from_pretrained(
        pipe.text_encoder, str(dog / "text_encoder"), adapter_name="dog"
    )
    for model, name in ((pipe.unet, "unet"), (pipe.text_encoder, "text_encoder")):
        model.load_adapter(str(toy / name), adapter_name="toy")
    answers = {"plain": question}
    for name in ("dog", "toy"):
        pipe.unet.set_adapter(name)
        pipe.text_encoder.set_adapter(name)
        assert differ(text_output(pipe), plain)
        answers[name] = unet_output(pipe, plain)
    for model in (pipe.unet, pipe.text_encoder):
        model.add_weighted_adapter(["toy", "dog"], [1.0, 1.05], "toy_dog")
        model.set_adapter("toy_dog")
    answers["toy_dog"] = unet_output(pipe, plain)
    names = list(answers)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert differ(answers[name], answers[other]), (name, other)


def test_pefts_adapter_is_what_was_trained(dog_and_toy: tuple[Path, Path], base: Path) -> None:
    """Merged by peft it equals base + Σ Δ."""
    dog, _ = dog_and_toy
    pipe = pipeline(base)
    before = {n: t.clone() for n, t in pipe.unet.state_dict().items()}
    merged = PeftModel.from_pretrained(pipe.unet, str(dog / "unet")).merge_and_unload()
    after = merged.state_dict()
    modules = read_adapter(dog).modules
    expected = {
        f"{name.removeprefix('unet.')}.weight": weights
        for name, weights in modules.items()
        if name.startswith("unet.")
    }
    assert expected
    assert all(re.search(r"attn[12]\.to_[qv]\.weight$", name) for name in expected)
    for name, tensor in before.items():
        if name in expected:
            wanted = tensor + expected[name].delta(tensor)
            assert torch.allclose(after[name], wanted, atol=1e-6)
            assert not torch.equal(after[name], tensor)
        else:
            assert torch.equal(after[name], tensor)


def test_peft_without_lora_is_a_pipeline(typed: Any, base: Path) -> None:
    out = typed("train_dreambooth", "--no_tracemalloc", max_train_steps=1)
    context = text_output(pipeline(base))
    assert differ(unet_output(pipeline(out), context), unet_output(pipeline(base), context))


@pytest.fixture(scope="module")
def shivam(typed: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ShivamShrirao's notebook, its class pictures made by the base."""
    root = tmp_path_factory.mktemp("shivam")
    concept = {
        "instance_prompt": "photo of zwx ball",
        "class_prompt": "photo of a ball",
        "instance_data_dir": str(pictures),
        "class_data_dir": str(root / "class"),
    }
    listed = root / "concepts_list.json"
    listed.write_text(json.dumps([concept]), encoding="utf-8")
    return typed(
        "train_dreambooth",
        "--with_prior_preservation",
        "--prior_loss_weight=1.0",
        "--mixed_precision=fp16",
        "--use_8bit_adam",
        "--hflip",
        instance_data_dir=None,
        instance_prompt=None,
        concepts_list=listed,
        num_class_images=3,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        save_interval=2,
        save_sample_prompt="photo of zwx ball",
        n_save_sample=2,
        save_infer_steps=1,
        learning_rate=1e-3,
        out=root / "out",
    )


def test_shivams_notebook(shivam: Path) -> None:
    folders = sorted([f.name for f in shivam.iterdir() if f.name != "0"], key=int)
    assert folders == ["2", "4"]
    samples = [len(list((shivam / folder / "samples").iterdir())) for folder in folders]
    assert samples == [2, 2]
    pipe = StableDiffusionPipeline.from_pretrained(
        str(shivam / folders[-1]), safety_checker=None, torch_dtype=torch.float16
    )
    assert pipe.unet.dtype == torch.float16
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    stored = read_tensors(shivam / "4" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert json.loads((shivam / "4" / "args.json").read_text())["data"]["flip"] is True


def test_class_pictures_are_made_where_the_list_says(shivam: Path) -> None:
    assert len(list((shivam.parent / "class").glob("*.png"))) == 3


def test_shivams_samples_are_of_their_step(shivam: Path) -> None:
    one, other = ((shivam / step / "samples" / "0.png").read_bytes() for step in ("2", "4"))
    assert one != other
    kept = shivam / "0" / "samples" / "step-000004-00.png"
    assert other == kept.read_bytes()


def test_shivams_conversion_to_one_file(shivam: Path) -> None:
    from dreambooth_core.commands.main import main

    target = shivam / "4" / "model.ckpt"
    line = [f"--model_path={shivam / '4'}", f"--checkpoint_path={target}", "--half"]
    assert main(["compat", "convert_diffusers_to_original_stable_diffusion", *line]) == 0
    stored = torch.load(target, weights_only=True)["state_dict"]
    assert stored["model.diffusion_model.input_blocks.0.0.weight"].dtype == torch.float16


def test_ppdiffusers_pipeline_and_log(typed: Any, base: Path) -> None:
    out = typed(
        "train_dreambooth",
        "--random_flip",
        height=64,
        width=64,
        report_to="visualdl",
        logging_dir="curves",
        max_train_steps=2,
        checkpointing_steps=1,
    )
    context = text_output(pipeline(base))
    assert differ(unet_output(pipeline(out), context), unet_output(pipeline(base), context))
    UNet2DConditionModel.from_pretrained(str(out / "checkpoint-1" / "unet"))
    assert list((out / "curves").glob("events.out.tfevents.*"))


def test_a_pushed_result_and_its_token(
    typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline lies in the run's folder; what the run keeps for itself is not published."""
    sent: list[str] = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            assert token == "hf_geheim"

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
            assert (name, private) == ("me/ball", True)
            return SimpleNamespace(repo_id=name)

        def upload_folder(
            self, *, repo_id: str, folder_path: str, ignore_patterns: list[str]
        ) -> None:
            root = Path(folder_path)
            files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
            sent.extend(filter_repo_objects(files, ignore_patterns=ignore_patterns))

        def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str) -> None:
            sent.append(path_in_repo)

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    out = typed(
        "train_dreambooth",
        "--push_to_hub",
        "--hub_model_id=me/ball",
        "--hub_token=hf_geheim",
        "--hub_licence=mit",
        "--hub_consent=nobody had to agree",
        max_train_steps=1,
        checkpointing_steps=1,
    )
    there = {name.split("/")[0] for name in sent}
    pipeline = {"model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert there >= {"README.md", *pipeline}
    assert there - pipeline <= {
        *("README.md", "feature_extractor", "single_file_remainder.safetensors")
    }
    assert len(sent) == len(set(sent))
    for path in out.rglob("*"):
        assert not path.is_file() or b"hf_geheim" not in path.read_bytes(), path
