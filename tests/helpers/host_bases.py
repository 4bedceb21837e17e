"""Tiny bases, each once as a folder and as the hosts' files, and what is asked of both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import flow_bases, host_files
from helpers.host_files import Split

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import FAMILIES

WRITERS = {
    "z_image": flow_bases.z_image,
    "flux2": flow_bases.flux2_klein,
    "flux": flow_bases.flux,
    "chroma": flow_bases.chroma,
    "sd3": flow_bases.sd3,
    "lumina2": flow_bases.lumina2,
    "qwen_image": flow_bases.qwen_image,
    "krea2": flow_bases.krea2,
    "ideogram4": flow_bases.ideogram4,
    "hidream": flow_bases.hidream,
}
ALL = {**WRITERS, "flux2_dev": partial(flow_bases.flux2_dev, head=8)}
"""Flux.2 dev too, whose tiny Mistral has heads of 8: ``host_language.LLAMA_HEAD``."""
PROMPT = "a photo of a red star"


class Bases:
    """Each tiny base once, as a folder and as files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: dict[str, tuple[Path, Split]] = {}
        self.read: dict[str, Components] = {}

    def of(self, name: str) -> tuple[Path, Split]:
        if name not in self.made:
            folder = ALL[name](self.home / name)
            files = host_files.write_split(FAMILIES[name], folder, self.home / f"{name} files")
            self.made[name] = folder, files
        return self.made[name]

    def loaded(self, name: str) -> Components:
        """The folder's models, which no test changes."""
        if name not in self.read:
            self.read[name] = load_base(BaseOptions(model=str(self.of(name)[0])))
        return self.read[name]


def options(files: Split) -> BaseOptions:
    return BaseOptions(
        model=str(files.denoiser),
        vae=str(files.vae),
        text_encoders=[str(path) for path in files.texts],
        tokenizer=str(files.tokenizer),
    )


def answer(parts: Components) -> torch.Tensor:
    """Of the denoiser, to a prompt that the text encoders read.

    From copies of the weights: kernels sum in an order that depends on where in a file they lie."""
    for model in parts.models.values():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, *parts.family.latent_shape(parts.configs, 64, 64), generator=generator)
    with torch.no_grad():
        dtype = next(parts.denoiser.parameters()).dtype
        conditioning = parts.family.encode(parts, [PROMPT]).to(
            device=torch.device("cpu"), dtype=dtype
        )
        return parts.family.predict(parts, noisy.to(dtype), torch.tensor([0.4]), conditioning, [])


def refused(base: BaseOptions) -> str:
    with pytest.raises(UserError) as caught:
        load_base(base)
    return " ".join(filter(None, (caught.value.what, str(caught.value.where), caught.value.do)))
