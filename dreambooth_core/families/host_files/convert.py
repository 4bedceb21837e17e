"""A denoiser of a rectified-flow family in the other layout: the hosts' file, or diffusers' folder.

The text encoders and the autoencoder are files of their own for the hosts and are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.disk import replacing_folder, write_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Family
from dreambooth_core.families.host_files.read import pieces_in
from dreambooth_core.families.host_files.record import HostFiles
from dreambooth_core.families.host_files.texts import hosts_file
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.families.registry import denoiser_among, family_of_pipeline
from dreambooth_core.formats.checkpoints.folder_layout import read_config, read_weights
from dreambooth_core.formats.checkpoints.networks import in_precision
from dreambooth_core.formats.folders import is_folder
from dreambooth_core.formats.privacy import cleaned
from dreambooth_core.formats.storage import read_metadata, write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Flow:
    """A denoiser that was found in a file or a folder; no weight is read yet."""

    family: Family
    files: HostFiles
    source: Path

    def hosts(self) -> dict[str, Tensor]:
        """Its weights in the hosts' names, with what stands in the same file."""
        if not is_folder(self.source):
            return {
                piece.prefix + name: tensor
                for piece in pieces_in(self.source)
                for name, tensor in piece.tensors().items()
            }
        return hosts_file(self.family, self.files, lambda name: read_weights(self.source / name))

    def diffusers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Its configuration and its weights in diffusers' names."""
        if is_folder(self.source):
            folder = self.source / self.family.denoiser
            return read_config(folder), read_weights(folder)
        piece = next(p for p in pieces_in(self.source) if self.files.fits(p.entries))
        return self.files.read(piece.tensors())

    def metadata(self) -> dict[str, str]:
        """What its file says of itself; a GGUF file and a folder say nothing."""
        plain = self.source.suffix == ".safetensors" and not is_folder(self.source)
        return read_metadata(self.source) if plain else {}


def find_flow(source: Path) -> Flow | None:
    """The denoiser of a known family in the hosts' file or in a folder in diffusers' layout; None
    for anything else.

    Raises:
        UserError: no such file, a damaged one, or one that is quantised in a way that is not read.
    """
    if not is_folder(source):
        found = denoiser_among(pieces_in(source))
        return None if found is None else Flow(found[0], found[1], source)
    family = family_of_pipeline(str(identify(source).details.get("pipeline", "")))
    return None if family is None or family.files is None else Flow(family, family.files, source)


def convert_flow(
    flow: Flow, target: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> int:
    """Writes it: ``NAME.safetensors`` in the hosts' names, any other name a folder that diffusers'
    class of the denoiser reads. Returns the number of its weights.

    Args:
        dtype: to store in; None leaves them as they are (8 bits and GGUF become bf16).

    Raises:
        UserError: the target is of a kind that holds no such model.
        SaveFailed: it could not be written.
    """
    if target.suffix in (".ckpt", ".pt", ".gguf"):
        raise UserError(
            f"{flow.family.label} is not written as {target.suffix}",
            where=target,
            do="Give NAME.safetensors for the file that hosts load, or a folder's name.",
        )
    if target.suffix == ".safetensors":
        tensors = in_precision(flow.hosts(), dtype)
        write_tensors(target, tensors, {"format": "pt", **flow.metadata(), **metadata})
        return sum(tensor.numel() for tensor in tensors.values())
    config, tensors = flow.diffusers()
    tensors = in_precision(tensors, dtype)
    with replacing_folder(target, [WEIGHTS, "config.json"]) as part:
        write_tensors(part / WEIGHTS, tensors, {"format": "pt", **metadata})
        write_json(part / "config.json", cleaned(config))
    return sum(tensor.numel() for tensor in tensors.values())
