"""The table of what excludes each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.loading import load
from dreambooth_core.errors import UserError
from dreambooth_core.options import TrainConfig, combinations
from dreambooth_core.options.combinations import RULES, Asked, refuse, refuse_settings

Given = dict[str, Any]

FUSED: Given = {"optim.fused_backward_pass": "true", "optim.max_grad_norm": 0}
SHARDED: Given = {"run.sharding": "full"}
FREE: Given = {"optim.optimizer": "adamw_schedulefree"}
PRODIGY: Given = {"optim.optimizer": "prodigy"}
PREDICTION: Given = {"prior.enabled": "true", "prior.source": "prediction"}
FULL: Given = {"method.kind": "full"}
FASTEST: Given = {"memory.attention": "fastest"}
LAST = {"memory.channels_last": "on"}
GRAPHS: Given = {
    "memory.cuda_graphs": "true",
    "memory.compile": "true",
    "data.crop": "center",
    "device": "cuda",
}
PAIRS: Given = {"objective.loss": "dpo", "marks.file": "marks.json"}
BROKEN: dict[tuple[str, str], Given] = {
    ("the fastest attention", "torch.compile"): {**FASTEST, "memory.compile": "true"},
    ("the fastest attention", "fused_backward_pass"): {**FASTEST, **FUSED},
    ("the fastest attention", "several processes"): {**FASTEST, "processes": 2},
    ("channels_last", "memory.stream"): {**LAST, "memory.stream": 0.5},
    ("channels_last", "run.sharding"): {**LAST, "run.sharding": "full", "processes": 2},
    ("CUDA graphs", "torch.compile off"): {**GRAPHS, "memory.compile": "false"},
    ("CUDA graphs", "devices that are not NVIDIA's"): {**GRAPHS, "device": "cpu"},
    ("CUDA graphs", "buckets"): {**GRAPHS, "data.crop": "bucket"},
    ("CUDA graphs", "gradient checkpointing"): {
        **GRAPHS,
        "memory.gradient_checkpointing": "true",
    },
    ("CUDA graphs", "gradient accumulation"): {**GRAPHS, "run.gradient_accumulation_steps": 2},
    ("CUDA graphs", "objective.loss dpo"): {**GRAPHS, **PAIRS},
    ("CUDA graphs", "several processes"): {**GRAPHS, "processes": 2},
    ("fused_backward_pass", "gradient accumulation"): {
        **FUSED,
        "run.gradient_accumulation_steps": 2,
    },
    ("fused_backward_pass", "gradient clipping by norm"): {**FUSED, "optim.max_grad_norm": 1},
    ("fused_backward_pass", "several processes"): {**FUSED, "processes": 2},
    ("fused_backward_pass", "fp16"): {**FUSED, "run.mixed_precision": "fp16"},
    ("fused_backward_pass", "Prodigy, D-Adaptation and schedule-free optimizers"): {
        **FUSED,
        **PRODIGY,
    },
    ("fused_backward_pass", "torch.compile"): {**FUSED, "memory.compile": "true"},
    ("stochastic_rounding", "weights that are not in bf16"): {
        "optim.stochastic_rounding": "true",
        "run.mixed_precision": "bf16",
    },
    ("stochastic_rounding", "schedule-free optimizers"): {
        "optim.stochastic_rounding": "true",
        "run.mixed_precision": "full_bf16",
        **FREE,
    },
    ("schedule-free optimizers", "a learning rate schedule"): {
        **FREE,
        "optim.lr_scheduler": "cosine",
    },
    ("schedule-free optimizers", "EMA"): {**FREE, "optim.ema.enabled": "true"},
    ("Prodigy and D-Adaptation", "a learning rate for each part"): {
        **PRODIGY,
        "method.train_text_encoder": "true",
        "optim.text_encoder_lr": 0.5,
    },
    ("Prodigy and D-Adaptation", "a small learning rate"): {
        **PRODIGY,
        "optim.learning_rate": 1e-4,
    },
    ("Prodigy and D-Adaptation", "fp16"): {**PRODIGY, "run.mixed_precision": "fp16"},
    ("schedule constant", "warm-up"): {"optim.lr_warmup_steps": 5},
    ("memory.stream", "full fine-tuning without fused_backward_pass"): {
        **FULL,
        "memory.stream": 0.5,
    },
    ("memory.stream", "torch.compile"): {"memory.stream": 1, "memory.compile": "true"},
    ("memory.stream", "several processes"): {"memory.stream": 1, "processes": 2},
    ("memory.stream", "Apple's GPUs"): {"memory.stream": 1, "device": "mps"},
    ("a 4-bit base", "Apple's GPUs"): {"memory.quantize": "nf4", "device": "mps"},
    ("a base in fp8", "Apple's GPUs"): {"memory.quantize": "fp8", "device": "mps"},
    ("schedule piecewise_constant", "warm-up"): {
        "optim.lr_scheduler": "piecewise_constant",
        "optim.step_rules": "1:10,0.5",
        "optim.lr_warmup_steps": 5,
    },
    ("a 4-bit or 8-bit base", "full fine-tuning"): {**FULL, "memory.quantize": "nf4"},
    (
        "full_bf16",
        "AdamW and others in bf16 without stochastic rounding, in full fine-tuning",
    ): {**FULL, "run.mixed_precision": "full_bf16"},
    ("method.train_denoiser off", "method.train_text_encoder off"): {
        "method.train_denoiser": "false"
    },
    ("prior.source prediction", "textual inversion"): {
        "method.kind": "textual_inversion",
        **PREDICTION,
    },
    ("objective.loss dpo", "no marked images"): {"objective.loss": "dpo"},
    ("objective.loss dpo", "methods that train no adapter"): {**FULL, **PAIRS},
    ("objective.loss dpo", "dropout"): {**PAIRS, "method.text_dropout": 0.1},
    ("marks.images own or none", "other losses than dpo"): {"marks.images": "none"},
    ("run.sharding", "objective.loss dpo"): {**SHARDED, **PAIRS},
    ("method.init_from", "textual inversion"): {
        "method.kind": "textual_inversion",
        "method.init_from": "it.safetensors",
    },
    ("run.stop_when", "no saves on the way"): {"run.stop_when": 2},
    ("run.steps and run.epochs empty", "schedules that end with the run"): {
        "run.stop_when": 2,
        "save.every_steps": 5,
        "run.steps": "null",
        "optim.lr_scheduler": "cosine",
    },
    ("method.training_adapter", "methods that train no adapter"): {
        **FULL,
        "method.training_adapter": "it.safetensors",
    },
    ("save.arrangement", "a method that it has no place for"): {
        "method.kind": "loha",
        "save.arrangement": "shivam",
    },
    ("save.best", "results laid out for other scripts"): {
        "save.best": "true",
        "save.arrangement": "diffusers",
    },
    ("save.layout", "a method that it has no place for"): {
        "method.kind": "lokr",
        "save.layout": "diffusers",
    },
    ("run.sharding", "a 4-bit or 8-bit base"): {**SHARDED, "memory.quantize": "nf4"},
    ("run.sharding", "torch.compile"): {**SHARDED, "memory.compile": "true"},
    ("run.sharding", "fp16"): {**SHARDED, "run.mixed_precision": "fp16"},
    ("run.sharding", "stochastic_rounding and fused_backward_pass"): {**SHARDED, **FUSED},
    ("run.sharding", "optimizers other than adamw, adam and sgd"): {
        **SHARDED,
        "optim.optimizer": "adafactor",
    },
    ("run.sharding", "prior.source prediction"): {**SHARDED, **PREDICTION},
    ("run.sharding", "save.best_by images"): {
        **SHARDED,
        "save.best": "true",
        "save.best_by": "images",
    },
    ("run.sharding", "method.training_adapter"): {
        **SHARDED,
        "method.training_adapter": "it.safetensors",
    },
    ("run.sharding", "EMA in RAM"): {
        **SHARDED,
        "optim.ema.enabled": "true",
        "optim.ema.on_cpu": "true",
    },
    ("fp16", "the CPU"): {"run.mixed_precision": "fp16", "device": "cpu"},
    ("class images in fp16", "the CPU"): {
        "prior.enabled": "true",
        "prior.precision": "fp16",
        "device": "cpu",
    },
    ("8-bit and paged optimizers, Lion", "Apple's GPUs"): {
        "optim.optimizer": "adamw8bit",
        "device": "mps",
    },
}


def asked(given: Given) -> Asked:
    """The configuration of these keys; ``device`` and ``processes`` are where it runs."""
    place = {key: given[key] for key in ("device", "processes") if key in given}
    overrides = [f"{key}={value}" for key, value in given.items() if key not in place]
    return Asked(load(TrainConfig, overrides=overrides), **place)


def test_every_rule_is_tested() -> None:
    assert set(BROKEN) == {(rule.first, rule.second) for rule in RULES}


@pytest.mark.parametrize("pair", BROKEN, ids=" and ".join)
def test_a_pair_is_refused_by_name_and_nothing_else_is(pair: tuple[str, str]) -> None:
    errors = refuse(asked(BROKEN[pair]))
    assert len(errors) == 1, [error.line for error in errors]
    assert f"{pair[0]} cannot be combined with {pair[1]}" in errors[0].line
    assert errors[0].where
    assert errors[0].do


@pytest.mark.parametrize(
    "given",
    [
        {},
        FUSED,
        FASTEST,
        GRAPHS,
        FREE,
        PRODIGY,
        {"method.kind": "textual_inversion", "method.train_denoiser": "false"},
        {"method.kind": "textual_inversion", "optim.text_encoder_lr": 0.5, **PRODIGY},
        {"method.kind": "textual_inversion", "save.layout": "peft"},
        {"run.resume": "latest"},
        {"run.resume": "200"},
        {"prior.precision": "fp16", "device": "cpu"},
        {**PAIRS, "marks.images": "none"},
    ],
)
def test_what_goes_together_is_let_through(given: Given) -> None:
    one = asked(given)
    refuse_settings(one.config, device=one.device, processes=one.processes)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (
            {"objective.min_timestep": 500, "objective.max_timestep": 100},
            "objective.min_timestep",
        ),
        ({"optim.lr_scheduler": "piecewise_constant"}, "optim.step_rules"),
        (
            {"optim.lr_scheduler": "piecewise_constant", "optim.step_rules": "1:10"},
            "optim.step_rules",
        ),
        (
            {"optim.lr_scheduler": "piecewise_constant", "optim.step_rules": "nan:10,1"},
            "optim.step_rules",
        ),
        (
            {"optim.lr_scheduler": "piecewise_constant", "optim.step_rules": "1:-3,1"},
            "optim.step_rules",
        ),
        ({"run.resume": "/etc"}, "run.resume"),
        ({"run.resume": "step-²"}, "run.resume"),
    ],
)
def test_settings_that_no_base_could_make_right(given: Given, where: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_settings(asked(given).config)
    assert caught.value.where == where


def test_the_page_is_in_step_with_the_table(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "combinations.md"
    assert page.read_text(encoding="utf-8") == combinations.as_markdown()
    assert combinations.main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_bytes() == page.read_bytes()
