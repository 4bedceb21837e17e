"""What a real ComfyUI draws: as the engine does, and with adapters and words put on."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dreambooth_core.commands import sample
from dreambooth_core.families.host_sampling import SCHEDULES, Like
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import weights_for
from tests.helpers.reduced_models import full_parts
from tests.hosts.comfyui_pack import CHECKPOINT, pocket_states
from tests.hosts.comfyui_prompts import (
    BASE,
    applied,
    drawing,
    latent,
    learning,
    loader,
    node,
    pixels,
)
from tests.hosts.comfyui_server import Server

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("schedule", SCHEDULES["comfyui"])
def test_images_like_the_hosts_are_the_hosts(server: Server, sampler: str, schedule: str) -> None:
    prompt = {**loader(), **drawing("like", *BASE)}
    name = "dpmpp_2m" if sampler == "dpm++" else sampler
    prompt["likek"]["inputs"] |= {"sampler_name": name, "scheduler": schedule}
    done = server.run(prompt)
    theirs = pixels(*server.pictures(done, "likeimage"))
    like = Like("comfyui", sampler, schedule)
    wanted = SamplingSettings(steps=8, guidance=3.0, width=64, height=64, like=like)
    parts = load_base(BaseOptions(model="pocket"))
    (made,) = generate(parts, ["a photo of sks star"], [5], wanted)
    apart = float(abs(theirs - numpy.asarray(made).astype(int)).mean())
    print(f"{sampler} {schedule}: {apart:.3f} of 255")
    assert apart < 1


def test_a_learned_word_and_its_adapter_in_the_same_graph(
    server: Server, name: str, tmp_path: Path
) -> None:
    """By the word, by the embedding's name on another CLIP, and as the engine draws the run."""
    prompt = learning(name, steps=4, seed=12, method="pivotal", token="sks", vectors="2")
    prompt["t"]["class_type"] = "DreamBoothTrainEmbedding"
    prompt["s"]["inputs"]["overrides"] += "\noptim.embedding_lr=0.05"
    named = f"a photo of embedding:dreambooth/{name} star"
    prompt |= {
        **loader(),
        **drawing("word", ["t", 0], ["t", 1], ["t", 2]),
        **drawing("named", ["t", 0], BASE[1], BASE[2], named),
        **drawing("unknown", ["t", 0], BASE[1], BASE[2]),
        "told": node("PreviewAny", source=["t", 4]),
    }
    done = server.run(prompt)
    assert not done.error
    assert done.outputs["told"]["text"] == [f"embedding:dreambooth/{name}"]
    word, also, unknown = (
        pixels(*server.pictures(done, f"{p}image")) for p in ("word", "named", "unknown")
    )
    assert numpy.array_equal(word, also) and abs(word - unknown).mean() > 1
    asked = sample.Options(
        prompts=["a photo of sks star"],
        run=str(server.folder / "output" / "dreambooth" / name),
        out=str(tmp_path),
        seed=5,
        steps=8,
        guidance=3.0,
        width=64,
        height=64,
        like="comfyui",
        schedule="simple",
        device="cpu",
    )
    sample.run(asked)
    apart = abs(word - pixels(*tmp_path.glob("*.png"))).mean()
    print(f"a learned word: {apart:.3f} of 255")
    assert apart < 1


def test_a_training_is_judged_in_the_same_graph(server: Server, name: str) -> None:
    """By the encoders that pocket brings; the best step goes on to Runs."""
    prompt = learning(name, steps=2, seed=13)
    prompt["t"]["inputs"]["checkpoint"] = "pocket"
    prompt["s"]["inputs"]["overrides"] += "\nsave.every_steps=1"
    assert not server.run(prompt).error
    judged = {
        "e": node(
            "DreamBoothEvaluate",
            run=name,
            saves=True,
            prompts="{} on a night background",
            images=1,
            sampling_steps=2,
        ),
        "grid": node("SaveImage", images=["e", 0], filename_prefix="tests/grid"),
        "r": node("DreamBoothRuns", run=name, step=["e", 1]),
    }
    done = server.run(judged)
    assert not done.error
    told = done.outputs["e"]["text"]
    assert any(re.match(rf"Subject: base [\d.]+, {name}, step 1 [\d.]+, {name} ", t) for t in told)
    best = next(int(line.rpartition(" ")[2]) for line in told if line.startswith("best step"))
    assert best in (1, 2) and f"{name}: finished, 2 of 2 steps" in done.outputs["r"]["text"]
    (sheet,) = server.pictures(done, "grid")
    assert pixels(sheet).shape[1] > 3 * 160
    said = [line for which, line in done.texts if which == "e"]
    assert any("images with the base" in line for line in said)


def random_adapter(method: str = "lora", seed: int = 0) -> Adapter:
    """Random weights that fit pocket."""
    modules = {}
    for component, tensors in pocket_states().items():
        for i, (key, weight) in enumerate(sorted(tensors.items())):
            if key.endswith(("to_q.weight", "to_v.weight", "q_proj.weight")):
                name = f"{component}.{key.removesuffix('.weight')}"
                modules[name] = weights_for(weight.float(), method, seed=seed * 1000 + i)
    return Adapter(modules, {}, "sd1")


def put(server: Server, adapter: Adapter, name: str, layout: str = "kohya") -> str:
    """Writes an adapter among the host's; its listed name."""
    loras = server.folder / "models" / "loras"
    ending = "" if layout == "peft" else ".safetensors"
    path = write_adapter(adapter, loras / f"tests/{name}{ending}", layout, dtype=torch.float32)
    path = path if path.is_file() else next(path.rglob("*.safetensors"))
    return path.relative_to(loras).as_posix()


def loaded(listed: str) -> Any:
    return node("DreamBoothLoadAdapter", lora=listed)


def test_merged_is_both(server: Server) -> None:
    files = [put(server, random_adapter(seed=s), f"m{s}") for s in (1, 2)]
    prompt = {
        **loader(),
        "a": loaded(files[0]),
        "b": loaded(files[1]),
        "m": node(
            "DreamBoothMergeAdapters",
            adapter_1=["a", 0],
            adapter_2=["b", 0],
            weight_1=0.7,
            weight_2=-0.4,
        ),
        "x": applied(["a", 0], BASE[0], BASE[1], strength_model=0.7, strength_clip=0.7),
        "y": applied(["b", 0], ["x", 0], ["x", 1], strength_model=-0.4, strength_clip=-0.4),
        "z": applied(["m", 0], BASE[0], BASE[1]),
        **drawing("both", ["y", 0], ["y", 1], BASE[2]),
        **drawing("merged", ["z", 0], ["z", 1], BASE[2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    both, merged, base = (latent(server, done, f"{p}latent") for p in ("both", "merged", "base"))
    assert (both - merged).abs().max() < 1e-3
    assert (both - base).abs().max() > 0.1


def test_merging_real_sizes_takes_less_than_a_second(server: Server) -> None:
    """Two rank-16 adapters of SD1.5's attention, after the first time."""
    shapes = full_parts("sd1").components["unet"].tensors
    names = [
        key.removesuffix(".weight")
        for key in shapes
        if re.search(r"to_(q|k|v|out\.0)\.weight$", key)
    ]
    assert len(names) == 128
    for seed in (1, 2):
        modules = {
            f"unet.{n}": weights_for(shapes[f"{n}.weight"], "lora", rank=16, seed=seed)
            for n in names
        }
        put(server, Adapter(modules, {}, "sd1"), f"big{seed}")
    took = []
    for weight in (0.5, 0.6, 0.7):
        prompt = {
            "a": loaded("tests/big1.safetensors"),
            "b": loaded("tests/big2.safetensors"),
            "m": node(
                "DreamBoothMergeAdapters",
                adapter_1=["a", 0],
                adapter_2=["b", 0],
                weight_1=weight,
            ),
            "n": node("DreamBoothAdapterInfo", adapter=["m", 0]),
        }
        begun: dict[str, float] = {}

        def note(message: dict[str, Any], begun: dict[str, float] = begun) -> None:
            if message["type"] == "executing" and message["data"].get("node"):
                begun[message["data"]["node"]] = time.monotonic()

        done = server.run(prompt, note)
        assert any("ranks: 32 (128)" in line for line in done.outputs["n"]["text"])
        took.append(begun["n"] - begun["m"])
    assert min(took[1:]) < 1.0, took


def test_a_saved_adapters_name_goes_into_the_hosts_own_loader(server: Server) -> None:
    prompt = {
        **loader(),
        "a": loaded(put(server, random_adapter(seed=8), "named")),
        "s": node("DreamBoothSaveAdapter", adapter=["a", 0], name=f"tests/in/{time.time_ns():x}"),
        "l": node("LoraLoader", model=BASE[0], clip=BASE[1], lora_name=["s", 0]),
        "x": applied(["a", 0], BASE[0], BASE[1]),
        **drawing("theirs", ["l", 0], ["l", 1], BASE[2]),
        **drawing("ours", ["x", 0], ["x", 1], BASE[2]),
    }
    done = server.run(prompt)
    assert not done.error and not done.refused
    theirs, ours = (latent(server, done, f"{p}latent") for p in ("theirs", "ours"))
    assert (theirs - ours).abs().max() < 1e-3


def test_blocks_and_schedules(server: Server) -> None:
    """A block's factor is an adapter without the others; a schedule's ends are base and whole."""
    whole = random_adapter(seed=7)
    out = {key: value for key, value in whole.modules.items() if key.startswith("unet.up_blocks")}
    text = {key: value for key, value in whole.modules.items() if key.startswith("text")}
    part = Adapter({**out, **text}, {}, "sd1")
    prompt = {**loader(), **drawing("base", *BASE)}
    prompt["a"] = loaded(put(server, whole, "blocks-whole"))
    prompt["b"] = loaded(put(server, part, "blocks-out"))
    how: dict[str, tuple[str, dict[str, Any]]] = {
        "whole": ("a", {}),
        "only": ("b", {}),
        "preset": ("a", {"block_preset": "OUT only"}),
        "list": ("a", {"blocks": "1, 0,0,0,0,0,0, 0, 1,1,1,1,1,1,1,1,1"}),
        "always": ("a", {"schedule": "0=1", "strength_clip": 0.0}),
        "model": ("a", {"strength_clip": 0.0}),
        "never": ("a", {"schedule": "0=0", "strength_clip": 0.0}),
        "half": ("a", {"schedule": "0.5=0", "strength_clip": 0.0}),
        "both": ("a", {"schedule": "0=1", "block_preset": "OUT only"}),
    }
    for key, (adapter, given) in how.items():
        prompt[key] = applied([adapter, 0], BASE[0], BASE[1], **given)
        prompt |= drawing(key, [key, 0], [key, 1], BASE[2])
    done = server.run(prompt)
    assert not done.error
    seen = {key: latent(server, done, f"{key}latent") for key in ("base", *how)}

    def apart(one: str, other: str) -> float:
        return float((seen[one] - seen[other]).abs().max())

    assert apart("whole", "only") > 0.1 < apart("only", "base")
    for one, other in (
        ("only", "preset"),
        ("only", "list"),
        ("only", "both"),
        ("model", "always"),
        ("base", "never"),
    ):
        assert apart(one, other) < 1e-3, (one, other)
    assert apart("half", "model") > 0.01 < apart("half", "base")


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_names_that_the_host_passes_over_take_effect(server: Server, layout: str) -> None:
    adapter = random_adapter(seed=3)
    prompt = {
        **loader(),
        "a": loaded(put(server, adapter, f"{layout}-names", layout)),
        "k": loaded(put(server, adapter, "kohya-names")),
        "x": applied(["a", 0], BASE[0], BASE[1]),
        "y": applied(["k", 0], BASE[0], BASE[1]),
        **drawing("converted", ["x", 0], ["x", 1], BASE[2]),
        **drawing("kohya", ["y", 0], ["y", 1], BASE[2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    converted, kohya, base = (
        latent(server, done, f"{p}latent") for p in ("converted", "kohya", "base")
    )
    assert (converted - base).abs().max() > 0.1
    if layout == "diffusers":
        assert (converted - kohya).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft"])
def test_applied_equals_baked(server: Server, method: str) -> None:
    """Apply in the host against the engine's dense computation, at a strength that is not 1."""
    listed = put(server, random_adapter(method, seed=5), f"bake-{method}")
    made = f"tests-{method}-{time.time_ns():x}"
    bake = {
        "a": loaded(listed),
        "b": node(
            "DreamBoothBakeCheckpoint",
            checkpoint=CHECKPOINT,
            adapter=["a", 0],
            weight=0.7,
            name=made,
            dtype="fp32",
        ),
    }
    assert not server.run(bake).error
    prompt = {
        **loader(),
        "a": loaded(listed),
        "x": applied(["a", 0], BASE[0], BASE[1], strength_model=0.7, strength_clip=0.7),
        **drawing("applied", ["x", 0], ["x", 1], BASE[2]),
        "d": node("CheckpointLoaderSimple", ckpt_name=f"{made}.safetensors"),
        **drawing("baked", ["d", 0], ["d", 1], ["d", 2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    one, other, base = (latent(server, done, f"{p}latent") for p in ("applied", "baked", "base"))
    effect = (one - base).abs().max()
    assert effect > 0.01
    assert (one - other).abs().max() < 0.01 * effect
    (server.folder / "models" / "checkpoints" / f"{made}.safetensors").unlink()
