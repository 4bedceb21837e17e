"""A run is fitted into its memory budget, and what a person set stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.config.loading import load
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.jobs import RunFolder, read_receipt
from dreambooth_core.memory import advice
from dreambooth_core.memory.advice import Fit, fit, usable
from dreambooth_core.memory.budget import MEASURES, measures_for
from dreambooth_core.memory.measure import Room
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.combinations import refuse_settings
from dreambooth_core.options.memory import GIB, MemoryOptions

SIDES = {"sd1": 512, "sd2": 768, "sdxl": 1024}


def fitted(preset: str, *overrides: str, family: str = "sd1") -> tuple[TrainConfig, Fit]:
    by_hand: set[str] = set()
    given = ["run.device=cuda", f"data.resolution={SIDES[family]}", *overrides]
    config = load(TrainConfig, preset=preset, overrides=given, by_hand=by_hand)
    return config, fit(config, by_hand, configs=stock_configs(family))


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * GIB), ("7.5 gb", int(7.5 * GIB)), ("512MB", GIB // 2)]
)
def test_sizes(text: str, size: int) -> None:
    assert MemoryOptions(budget=text).limit == size


@pytest.mark.parametrize("text", ["8", "eight", "0GB", "-8GB", "8 TB", "1e9GB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="amount of memory"):
        refuse_settings(_with(text))


def _with(budget: str) -> TrainConfig:
    config = load(TrainConfig)
    config.memory.budget = budget
    return config


@pytest.mark.parametrize(
    ("method", "family", "sizes"),
    [
        ("lora", "sd1", (6, 24)),
        ("full", "sd1", (6, 32)),
        pytest.param("lora", "sdxl", (8,), marks=pytest.mark.long),
    ],
)
def test_full_size_models_fit_what_the_memory_presets_fitted(
    method: str, family: str, sizes: tuple[int, ...]
) -> None:
    """Models without weights; the recipe that needs most. That SDXL is fitted is seen below too."""
    taken = []
    for size in sizes:
        _, found = fitted(f"person-{method}-{family}", f"memory.budget={size}GB", family=family)
        assert found.needs is not None
        assert found.needs.peak <= usable(size * GIB)
        refuse_settings(found.config, device="cuda")
        taken.append(len(found.taken))
    assert taken == sorted(taken, reverse=True)


def test_a_small_budget_keeps_blocks_in_ram() -> None:
    fixed = ("memory.quantize=no", "memory.stream=auto", "memory.budget=5GB")
    _, found = fitted("style-lora-sdxl", *fixed, family="sdxl")
    assert found.needs is not None and found.fits
    assert float(found.config.memory.stream) > 0
    assert found.needs.training.streamed > GIB
    assert found.needs.ram > 4 * GIB


def test_a_base_that_is_in_fp8_stays_so_before_it_is_rounded(tmp_path: Path) -> None:
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    given = ["run.device=cuda", "data.resolution=512", "run.mixed_precision=bf16"]
    found = []
    for dtype, model in (
        (torch.float16, tmp_path),
        (torch.float8_e4m3fn, tmp_path),
        (torch.float8_e5m2, file),
    ):
        matrix = torch.ones(64, 64).to(dtype)
        write_tensors(file, {"a.weight": matrix, "a.bias": torch.ones(64)})
        config = load(TrainConfig, overrides=[*given, f"base.model={model}"])
        planner = Planner(config, stock_configs("sd1"), device="cuda")
        ways = advice.cheaper(planner, int(2.45 * GIB))
        found += [way for way in ways if "memory.quantize" in way.changes]
    assert [way.changes["memory.quantize"] for way in found] == ["int8", "fp8", "fp8"]
    assert "what its files hold" in found[1].measure.cost
    assert found[1].needs.peak == found[0].needs.peak


def test_a_smaller_budget_still_takes_less_than_fp8() -> None:
    names = [measure.name for measure in measures_for(fp8=True)]
    place = names.index("base in fp8, as in its files")
    assert names[place + 1 : place + 3] == ["base in 8 bits", "base in 4 bits"]
    assert names[:place] + names[place + 1 :] == [measure.name for measure in MEASURES]


@pytest.mark.parametrize("has", [True, False])
def test_a_budget_on_a_cpu_takes_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    found = {"avx512_bf16": True} if has else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    config = load(TrainConfig, overrides=["run.device=cpu", "data.resolution=512"])
    planner = Planner(config, stock_configs("sd1"), device="cpu")
    ways = {key for way in advice.cheaper(planner, GIB) for key in way.changes}
    assert ("run.mixed_precision" in ways) == has
    assert "memory.gradient_checkpointing" in ways


def test_on_a_cpu_there_is_no_reason_to_stream() -> None:
    config = load(TrainConfig, overrides=["memory.stream=0.5"])
    assert advice.can_run(config, "cuda")
    assert not advice.can_run(config, "cpu")


@pytest.mark.parametrize(
    ("has", "device", "given", "precision"),
    [
        ({}, "cpu", (), "no"),
        ({"avx512_bf16": True}, "cpu", (), "bf16"),
        ({}, "cpu", ("run.mixed_precision=bf16",), "bf16"),
        ({}, "cuda", (), "bf16"),
    ],
)
def test_a_preset_computes_in_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch,
    has: dict[str, bool],
    device: str,
    given: tuple[str, ...],
    precision: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    _, found = fitted("style-lora-sdxl", f"run.device={device}", *given, family="sdxl")
    assert found.config.run.mixed_precision == precision


@pytest.mark.parametrize(("built", "precision"), [("13.0", "bf16"), (None, "no")])
def test_a_host_asks_for_what_its_engine_can_find(
    monkeypatch: pytest.MonkeyPatch, built: str | None, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.version, "cuda", built)
    config = load(TrainConfig, preset="style-lora-sdxl", overrides=["run.device=auto"])
    assert fit(config, elsewhere=True).config.run.mixed_precision == precision


def test_what_a_person_set_stays() -> None:
    _, found = fitted("object-full-sd1", "memory.budget=12GB")
    assert "memory.gradient_checkpointing" in {k for t in found.taken for k in t.changes}
    kept = "memory.gradient_checkpointing=false"
    _, other = fitted("object-full-sd1", "memory.budget=12GB", kept)
    assert not other.config.memory.gradient_checkpointing
    assert other.fits


def test_what_cannot_fit_is_refused_and_says_what_would() -> None:
    with pytest.raises(UserError, match=r"does not fit into 1\.00 GiB.*data\.resolution="):
        fitted("object-full-sd1", "memory.budget=1GB")


def test_auto_is_what_the_gpu_has_free_and_nothing_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, found = fitted("object-lora-sd1")
    assert found.config == config  # no GPU here
    room = Room(free=8 * GIB, total=24 * GIB)
    monkeypatch.setattr(advice, "device_room", lambda _: room)
    _, found = fitted("object-full-sd1")
    assert found.budget == 8 * GIB
    assert found.taken and found.fits
    assert fit(load(TrainConfig, overrides=["run.device=cpu"])).taken == ()


def test_check_and_train_say_what_was_taken(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        f"base.model={base}",
        f"concepts=[{{images: {json.dumps(str(pictures))}, instance_prompt: a ball}}]",
        "data.resolution=64",
        "run.batch_size=4",
        "method.kind=full",
        f"run.output={tmp_path}",
        "run.device=cpu",
    ]
    arguments += [f"{key}={value}" for key, value in {"memory.budget": "12MB"}.items()]
    assert main(["check", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["measures"]
    assert told["config"]["run.mixed_precision"] == "bf16"
    assert main(["train", *arguments, "--prepare", "--json"]) == 0
    folder = RunFolder(json.loads(capsys.readouterr().out)["path"])
    assert read_receipt(folder)["memory"]["measures"] == told["memory"]["measures"]
