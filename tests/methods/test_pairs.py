"""Options together, on families and with methods that no other test puts them on.

Between them the runs have every pair of a group of options with a family and with a method. Each
group is seen to do its work in each run. Those that are tried by ``--long`` alone add no family:
their methods are tried in ``test_families``, each option with others here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import KINDS
from helpers.observed import Observed, observe
from helpers.runs import config_for
from helpers.tiny import draw_pictures
from PIL import Image

from dreambooth_core.attention.processors import KernelProcessor
from dreambooth_core.methods.table import METHODS

BaseOf = Callable[[str], Path]

GROUPS: dict[str, dict[str, Any]] = {
    "prior": {
        "prior__enabled": "true",
        "prior__num_class_images": 2,
        "prior__num_inference_steps": 1,
    },
    "masks in buckets": {
        "data__crop": "bucket",
        "data__bucket_reso_steps": 16,
        "data__masks": "files",
    },
    "objective": {"objective__weighting": "min_snr", "objective__noise_offset": 0.1},
    "average": {
        "run__gradient_accumulation_steps": 2,
        "optim__ema__enabled": "true",
        "optim__ema__decay": 0.5,
        "optim__lr_scheduler": "linear",
    },
    "memory": {"memory__gradient_checkpointing": "true", "memory__attention": "chunked"},
    "disk": {"data__cache": "disk", "data__flip": "true", "data__caption_dropout_rate": 0.01},
    "fused": {"optim__fused_backward_pass": "true", "optim__max_grad_norm": 0},
}
ALL = set(GROUPS) - {"fused"}

ROWS: list[tuple[str, str, set[str]]] = [
    ("sd1", "full", ALL),
    ("sd2", "lora", ALL),
    ("sd2-v", "lokr", ALL),
    ("sdxl", "full", ALL - {"average"} | {"fused"}),
    ("sd1-inpainting", "pivotal", ALL),
    ("sd2-inpainting", "textual_inversion", ALL),
    ("sdxl-inpainting", "dora", ALL),
]
MORE_ROWS: list[tuple[str, str, set[str]]] = [
    ("sdxl", "pivotal", {"average", "prior"}),
    ("sdxl-inpainting", "loha", ALL),
    ("sdxl-inpainting", "oft", ALL),
    ("sdxl-inpainting", "lokr", {"masks in buckets", "disk"}),
    ("sdxl-inpainting", "textual_inversion", {"memory", "objective"}),
    ("sdxl-inpainting", "pivotal", {"average", "memory"}),
]


def test_every_pair_is_there() -> None:
    for place, names in enumerate((KINDS, METHODS)):
        for name in names:
            found: set[str] = set().union(
                *(row[2] for row in [*ROWS, *MORE_ROWS] if row[place] == name)
            )
            assert found >= ALL, (name, ALL - found)
    new = {(kind, method) for kind, method, _ in [*ROWS, *MORE_ROWS] if kind == "sdxl-inpainting"}
    assert {method for _, method in new} | {"lora", "full"} == set(METHODS)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two wide pictures whose left halves count."""
    folder = draw_pictures(tmp_path_factory.mktemp("wide"), 2, (160, 64))
    for index in range(2):
        mask = Image.new("L", (160, 64))
        mask.paste(255, (0, 0, 80, 64))
        mask.save(folder / f"ball-{index}.mask.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "method", "groups"),
    [
        pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=[pytest.mark.long] * (row in MORE_ROWS))
        for row in [*ROWS, *MORE_ROWS]
    ],
)
def test_options_work_together(
    kind: str, method: str, groups: set[str], base_of: BaseOf, wide: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "method__kind": method,
        "method__train_text_encoder": str(method != "full").lower(),
        "run__batch_size": 1,
        "run__steps": 2,
    }
    for name in sorted(groups):
        changes |= GROUPS[name]
    seen = observe(config_for(base_of(kind), wide, tmp_path, **changes), proven=True, fresh=True)
    assert seen.receipt["proof"]["passed"]
    for name in GROUPS:
        CHECKS[name](seen, name in groups)


def check_prior(seen: Observed, wanted: bool) -> None:
    assert ("a photo of a ball" in seen.captions) == wanted
    assert all(("class_loss" in event) == wanted for event in seen.progress("train"))


def check_masks(seen: Observed, wanted: bool) -> None:
    """Only the subject's pictures are wide and have a mask."""
    own = [one for one in seen.passes if "a photo of sks ball" in one.captions]
    assert own and all((one.mask is not None) == wanted for one in own)
    for one in own:
        assert one.clean.shape[-2:] == ((6, 10) if wanted else (8, 8))
        if one.mask is not None:
            flipped = bool(one.mask[0, 0, 0, 0] == 0)
            half = one.mask.flip(-1) if flipped else one.mask
            assert half[..., :4].min() == 1 and half[..., 6:].max() == 0


def check_objective(seen: Observed, wanted: bool) -> None:
    objective = seen.training.objective
    for one in seen.passes:
        ratio = objective.snr[one.sample.timesteps]
        below = ratio + 1 if objective.prediction_type == "v_prediction" else ratio
        expected = ratio.clamp(max=5) / below if wanted else torch.ones(len(ratio))
        torch.testing.assert_close(one.sample.weights, expected)


def check_average(seen: Observed, wanted: bool) -> None:
    training = seen.training
    assert (training.ema is not None) == wanted
    assert training.plan.accumulation == (2 if wanted else 1)
    assert (seen.told("lr")[0] != seen.told("lr")[1]) == wanted
    if training.ema is not None:
        averages = zip(training.ema.averages.values(), training.stepper.parameters, strict=True)
        assert any(not torch.equal(average, p) for average, p in averages)


def check_memory(seen: Observed, wanted: bool) -> None:
    unet = seen.training.parts.denoiser
    assert unet.is_gradient_checkpointing == wanted
    kernels = [p for p in seen.processors if isinstance(p, KernelProcessor)]
    assert bool(kernels) == wanted


def check_disk(seen: Observed, wanted: bool) -> None:
    kept = list((seen.folder.path.parent / ".cache").rglob("*.cache"))
    assert bool(kept) == wanted
    pictures = len(seen.training.items.images) + len(seen.training.items.class_images)
    assert seen.progress("latents")[-1]["steps"] == pictures * (2 if wanted else 1)


def check_fused(seen: Observed, wanted: bool) -> None:
    assert all(
        ("gradient_norm" in e and e["gradient_norm"] is None) == wanted
        for e in seen.progress("train")
    )
    assert all(p.grad is None for p in seen.training.stepper.parameters)


CHECKS = {
    "prior": check_prior,
    "masks in buckets": check_masks,
    "objective": check_objective,
    "average": check_average,
    "memory": check_memory,
    "disk": check_disk,
    "fused": check_fused,
}
