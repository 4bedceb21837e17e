"""Where results lie, for those who have code that expects them as other scripts leave them.

``diffusers``
    A whole pipeline in the run's folder and the trained networks in ``checkpoint-100/unet`` and
    ``/text_encoder``; of an adapter ``pytorch_lora_weights.safetensors`` in both places.
``peft``
    ``unet/adapter_config.json`` and ``text_encoder/…`` in the same places.
``shivam``
    A whole pipeline with its samples in ``100/``, ``200/`` … in the run's folder, where no other
    run writes. Of a run named ``0``, which is what its command line makes, *beside* that folder:
    its notebook takes every folder there but ``0`` for a number of steps.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.devices import STORED
from dreambooth_core.disk import (
    exchanging,
    remove,
    replacing_folder,
    write_bytes,
    write_json,
)
from dreambooth_core.families.base import config_of
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.checkpoints.build import component_of
from dreambooth_core.formats.checkpoints.folder import NAMES
from dreambooth_core.formats.checkpoints.folder_layout import stored_config
from dreambooth_core.formats.privacy import cleaned
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.jobs import RunFolder

if TYPE_CHECKING:
    from dreambooth_core.trainer.session import Session

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for."""

KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
ARGUMENTS = "args.json"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


def write_arranged(session: Session, metadata: dict[str, str], *, final: bool) -> Path:
    """Writes the present state of what is trained as ``save.arrangement`` says.

    Returns:
        The folder or, of an adapter in diffusers' arrangement, the file.

    Raises:
        SaveFailed: it could not be written.
    """
    if session.config.save.arrangement == "shivam":
        return _write_numbered(session, metadata)
    root = session.folder.path
    checkpoint = root / f"checkpoint-{session.step}"
    every = session.config.save.every_steps
    if not final or (every and session.step % every == 0):
        written = _write_trained(session, checkpoint, metadata)
        _prune(root, session.config.save.keep)
        if not final:
            return written
    if session.method.adapter() is None:
        _write_pipeline(session, root, metadata)
        return root
    return _write_trained(session, root, metadata)


def arrange_samples(session: Session) -> None:
    """Puts this step's validation images beside the numbered pipeline that they show."""
    if session.config.save.arrangement != "shivam" or session.step == 0:
        return
    images = sorted(session.folder.samples.glob(f"step-{session.step:06d}-*.png"))
    for index, image in enumerate(images):
        target = _numbered(session) / "samples" / f"{index}.png"
        write_bytes(target, image.read_bytes())


ALONE = "0"
"""The run that has its folder of runs for itself."""


def _numbered(session: Session) -> Path:
    own = session.folder
    beside = own.path.with_name(str(session.step))
    if own.name == ALONE and not RunFolder(beside).exists():
        return beside
    return own.path / str(session.step)


def _write_numbered(session: Session, metadata: dict[str, str]) -> Path:
    folder = _numbered(session)
    adapter = session.method.adapter()
    with replacing_folder(folder, [*NAMES, LORA_FILE, ARGUMENTS]) as part:
        if adapter is None:
            _write_pipeline(session, part, metadata, scheduler="ddim")
        else:
            adapter.metadata.update(metadata)
            dtype = STORED[session.config.save.precision]
            write_adapter(adapter, part / LORA_FILE, "diffusers", dtype=dtype)
        write_json(part / ARGUMENTS, cleaned(asdict(session.config)))
    return folder


def _write_pipeline(
    session: Session, folder: Path, metadata: dict[str, str], scheduler: str | None = None
) -> None:
    """A whole diffusers folder, with the base's sampler or another."""
    parts, dtype = session.parts, STORED[session.config.save.precision]
    parts.family.write_folder(parts, folder, dtype, metadata, scheduler=scheduler, extras="none")


def _write_trained(session: Session, folder: Path, metadata: dict[str, str]) -> Path:
    """What is trained and nothing else: networks in folders of their own, or the adapter."""
    dtype = STORED[session.config.save.precision]
    adapter = session.method.adapter()
    if adapter is None:
        with replacing_folder(folder, NAMES) as part:
            for name, model in session.method.trained_models.items():
                component = component_of(name, model)
                stem = (
                    "diffusion_pytorch_model" if name == session.parts.family.denoiser else "model"
                )
                tensors = {
                    key: tensor.to(dtype) if tensor.is_floating_point() else tensor
                    for key, tensor in component.tensors.items()
                }
                write_tensors(part / name / f"{stem}.safetensors", tensors, {"format": "pt"})
                write_json(part / name / "config.json", stored_config(name, config_of(model)))
        return folder
    adapter.metadata.update(metadata)
    if session.config.save.arrangement == "peft":
        return write_adapter(adapter, folder, "peft", dtype=dtype)
    with exchanging(folder, [LORA_FILE, KOHYA_FILE]) as part:
        if session.config.save.also_kohya:
            write_adapter(adapter, part / KOHYA_FILE, "kohya", dtype=dtype)
        write_adapter(adapter, part / LORA_FILE, "diffusers", dtype=dtype)
    return folder / LORA_FILE


def _prune(root: Path, keep: int | None) -> None:
    """Deletes the oldest ``checkpoint-N`` beyond ``keep``; None keeps all."""
    if keep is None:
        return
    found = {
        int(match.group(1)): path
        for path in root.iterdir()
        if (match := _CHECKPOINT.match(path.name)) and path.is_dir()
    }
    for step in sorted(found)[:-keep]:
        remove(found[step])
