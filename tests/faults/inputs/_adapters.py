"""Good adapters of every method and layout, and a base that they fit, for generators to spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

NAMES = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
)
WIDTH = 32
"""Of the reduced model's first level, and of its text."""

Tensors = dict[str, Tensor]


def draw(*shape: int) -> Tensor:
    """Random numbers, the same for a shape each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def lora(rank: int = 4, width: int = WIDTH, names: tuple[str, ...] = NAMES) -> Tensors:
    """A LoRA in kohya's names."""
    made: Tensors = {}
    generator = torch.Generator().manual_seed(1)
    for name in names:
        made[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator)
        made[f"{name}.lora_up.weight"] = torch.randn(width, rank, generator=generator)
        made[f"{name}.alpha"] = torch.tensor(float(rank))
    return made


def write_lora(path: Path, **changes: Tensor) -> Path:
    """A LoRA file; ``changes`` replace tensors by name."""
    save_file({**lora(), **changes}, path)
    return path


def tails(method: str) -> Tensors:
    """What a file holds for one module, a 32 x 32 matrix (``locon``: a 3 x 3 convolution)."""
    w, r = WIDTH, 4
    alpha = {"alpha": torch.tensor(2.0)}
    if method == "locon":
        return {"lora_down.weight": draw(r, w, 3, 3), "lora_up.weight": draw(w, r, 1, 1), **alpha}
    if method == "tucker":
        return {
            "lora_down.weight": draw(r, w, 1, 1),
            "lora_mid.weight": draw(r, r, 3, 3),
            "lora_up.weight": draw(w, r, 1, 1),
            **alpha,
        }
    if method == "loha":
        names = {"hada_w1_a": (w, r), "hada_w1_b": (r, w), "hada_w2_a": (w, r), "hada_w2_b": (r, w)}
        return {name: draw(*shape) for name, shape in names.items()} | alpha
    if method == "lokr":
        return {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(16, r), "lokr_w2_b": draw(r, 16), **alpha}
    if method == "oft":
        return {"oft_blocks": draw(8, 4, 4), "alpha": torch.tensor(0.0)}
    if method == "diff":
        return {"diff": draw(w, w)}
    if method == "peft oft":
        return {"oft_R.weight": draw(8, 6)}
    plain = {"lora_down.weight": draw(r, w), "lora_up.weight": draw(w, r), **alpha}
    return {**plain, "dora_scale": draw(w, 1).abs() + 1} if method == "dora" else plain


METHODS = ("lora", "locon", "tucker", "dora", "loha", "lokr", "oft", "diff")


def module_for(method: str) -> str:
    """The name, in kohya's layout, of a module that the method's tensors fit."""
    if method in ("locon", "tucker"):
        return "lora_unet_down_blocks_0_resnets_0_conv1"
    return NAMES[0]


def adapter(method: str, **changes: Tensor | None) -> Tensors:
    """An adapter of one module in kohya's names; ``changes`` by tail, ``None`` takes one away."""
    found = {**tails(method), **changes}
    return {f"{module_for(method)}.{tail}": t for tail, t in found.items() if t is not None}


def write(
    place: Path, tensors: Mapping[str, Tensor], form: str, metadata: dict[str, str] | None = None
) -> str:
    """Writes tensors as ``safetensors``, ``pickle`` or an old ``bare pickle``; the file's name."""
    kept = {name: t.contiguous() for name, t in tensors.items()}
    if form == "safetensors":
        save_file(kept, place / "a.safetensors", metadata)
        return "a.safetensors"
    torch.save(kept, place / "a.pt", _use_new_zipfile_serialization=form == "pickle")
    return "a.pt"


def write_peft(place: Path, config: Any, tensors: Mapping[str, Tensor] | None = None) -> str:
    """A folder of peft's; ``config`` a JSON value or the text itself."""
    folder = place / "unet"
    folder.mkdir()
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    good = {f"{path}.lora_A.weight": draw(4, WIDTH), f"{path}.lora_B.weight": draw(WIDTH, 4)}
    save_file(dict(good if tensors is None else tensors), folder / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return "unet"


def shared(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A file that all cases of a run share, made by the first that wants it."""
    place = folder.parent.parent / "shared"
    place.mkdir(exist_ok=True)
    path = place / name
    if not path.exists():
        part = place / f"{os.getpid()}-{name}"
        make(part)
        os.replace(part, path)
    return path


def base(folder: Path, spoil: Callable[[Tensors], None] | None = None, name: str = "base") -> Path:
    """A reduced Stable Diffusion 1 in one file, whole or spoilt. Its module ``to_q`` is 32 x 32."""
    from safetensors.torch import load_file

    from dreambooth_core.families.stable_diffusion.single_write import write_single_file
    from tests.helpers.reduced_models import reduced_parts

    good = shared(
        folder,
        "base.safetensors",
        lambda path: _named(write_single_file, reduced_parts("sd1"), path),
    )
    if spoil is None:
        return good

    def make(path: Path) -> None:
        tensors = load_file(good)
        spoil(tensors)
        from safetensors import safe_open

        with safe_open(good, "pt") as file:
            save_file(tensors, path, file.metadata())

    return shared(folder, f"{name}.safetensors", make)


def _named(write_single_file: Callable[..., Any], parts: Any, path: Path) -> None:
    """The writer goes by the ending, and the part's name has it too."""
    write_single_file(parts, path)
