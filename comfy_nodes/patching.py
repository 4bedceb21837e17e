"""Adapters and learned words onto the host's MODEL and CLIP."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import UserError

from .blocks import by_factor
from .exact import strengths_for, with_exact_dora

if TYPE_CHECKING:
    from torch import Tensor


def patch(
    model: Any,
    clip: Any,
    file: Path,
    unet: float,
    text: float,
    *,
    blocks: Mapping[str, float] | None = None,
    schedule: Sequence[tuple[float, float]] = (),
) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with an adapter in names that the host takes. Either may be None.

    Args:
        unet: the strength on MODEL.
        text: the strength on CLIP.
        blocks: factors of blocks by name; the others count wholly.
        schedule: factors of MODEL's strength over the sampling, see :func:`~.blocks.read_schedule`.
            They come with the prompts that CLIP encodes.

    Raises:
        UserError: the adapter changes nothing of them, or has not the blocks.
    """
    import comfy.utils

    if (unet == 0 or model is None) and (text == 0 or clip is None):
        return model, clip
    state = comfy.utils.load_torch_file(str(file), safe_load=True)
    state = with_exact_dora(state, model, clip)
    before = _patches(model) + _patches(clip)
    changed, planned, wanted = (model, clip), [], False
    for factor, keys in by_factor(state, blocks or {}, file.name).items():
        part = {key: state[key] for key in sorted(keys)}
        on_model, on_clip = (strengths_for(part, each * factor) for each in (unet, text))
        wanted = wanted or factor != 0
        if schedule and model is not None and _on_model(model, part):
            planned.append((part, on_model))
            on_model = 0.0
        changed = _put_on(*changed, part, on_model, on_clip)
    model, clip = changed
    if planned:
        clip = _scheduled(clip, planned, schedule, file.name)
    if wanted and not planned and _patches(model) + _patches(clip) == before:
        raise UserError(
            "no weight of this model is changed by the adapter",
            where=file.name,
            do="It was made for another family: look at it with Adapter Info.",
        )
    return model, clip


def _on_model(model: Any, state: dict[str, Tensor]) -> bool:
    """Whether the host finds a weight of MODEL for anything of an adapter."""
    import comfy.lora

    known = comfy.lora.model_lora_keys_unet(model.model, {})
    return bool(comfy.lora.load_lora(dict(state), known, log_missing=False))


def _scheduled(
    clip: Any,
    parts: Sequence[tuple[dict[str, Tensor], float]],
    schedule: Sequence[tuple[float, float]],
    name: str,
) -> Any:
    """A clone of CLIP whose prompts change MODEL while it samples, by the host's own hooks."""
    import comfy.hooks

    if clip is None:
        raise UserError(
            "a strength that changes while sampling comes with the prompts",
            where=name,
            do="Link CLIP too, and encode the prompts with the one from here.",
        )
    hooks, keyframes = comfy.hooks.HookGroup(), comfy.hooks.HookKeyframeGroup()
    for state, strength in parts:
        hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=0.0)
        hook.weights = state
        hooks.add(hook)
    for share, factor in schedule:
        keyframes.add(comfy.hooks.HookKeyframe(factor, start_percent=share, guarantee_steps=0))
    hooks.set_keyframes_on_hooks(keyframes)
    found = clip.clone()
    both = [clip.apply_hooks_to_conds, hooks]
    found.apply_hooks_to_conds = comfy.hooks.HookGroup.combine_all_hooks(both)
    return found


def _put_on(model: Any, clip: Any, state: dict[str, Tensor], unet: float, text: float) -> Any:
    import comfy.sd

    if unet == 0 and text == 0:
        return model, clip
    return comfy.sd.load_lora_for_models(model, clip, state, unet, text)


def knowing(clip: Any, word: str, name: str) -> Any:
    """A clone of CLIP that reads a word of prompts, standing alone, as one of the host's
    embeddings. ``clip`` may be None."""
    if clip is None:
        return None
    found, read = clip.clone(), clip.tokenizer.tokenize_with_weights
    alone = re.compile(rf"embedding:\S+|(?<!\w)(?P<word>{re.escape(word)})(?!\w)", re.IGNORECASE)

    def tokenize(text: str, *given: Any, **named: Any) -> Any:
        told = alone.sub(lambda m: f" embedding:{name} " if m["word"] else m[0], text)
        return read(told, *given, **named)

    found.tokenizer = copy.copy(clip.tokenizer)
    found.tokenizer.tokenize_with_weights = tokenize
    return found


def _patches(owner: Any) -> int:
    """How many patches a MODEL or CLIP has."""
    if owner is None:
        return 0
    return sum(len(each) for each in getattr(owner, "patcher", owner).patches.values())
