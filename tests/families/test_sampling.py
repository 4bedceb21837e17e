"""Making images beside a training: what comes to the device when, and too little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.families import reduced_base
from PIL import ImageChops
from torch import Tensor

from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, decode, generate
from dreambooth_core.memory.streaming import Streaming

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = tmp_path_factory.mktemp("bases") / "sd1"
    return load_base(BaseOptions(model=str(reduced_base("sd1", folder, slim=True))))


def made(parts: Components, **more: Any) -> list[bytes]:
    settings = SamplingSettings(steps=1, width=64, height=64)
    return [image.tobytes() for image in generate(parts, ["a", "b"], [0, 1], settings, **more)]


def test_encoders_and_autoencoder_come_only_for_their_work(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(parts)
    seen: list[str] = []

    def noted(name: str, network: Any) -> None:
        monkeypatch.setattr(network, "to", lambda place: seen.append(f"{name} to {place}"))
        network.register_forward_pre_hook(lambda *_: seen.append(name))

    noted("text", parts.text_encoders[0])
    noted("denoiser", parts.denoiser)
    noted("vae", parts.vae)
    original = parts.vae.decode
    monkeypatch.setattr(
        parts.vae, "decode", lambda *a, **k: (seen.append("vae"), original(*a, **k))[1]
    )
    assert made(parts, device=torch.device("cpu:0")) == plain
    without_repeats = [name for n, name in enumerate(seen) if not n or seen[n - 1] != name]
    assert without_repeats == [
        "text to cpu:0",
        "text",
        "text to cpu",
        "denoiser",
        "vae to cpu:0",
        "vae",
        "vae to cpu",
    ]


def test_beside_a_streamed_denoiser_encoders_are_streamed(parts: Components) -> None:
    plain = made(parts)
    blocks = parts.family.blocks(parts.denoiser)
    parts.streaming = Streaming(parts.denoiser, blocks, CPU)
    most: list[int] = []
    layers = parts.family.blocks(parts.text_encoders[0])
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: most.append(len(layer._forward_pre_hooks)))
        for layer in layers
    ]
    try:
        assert made(parts, device=CPU) == plain
    finally:
        for handle in handles:
            handle.remove()
        parts.streaming.close()
        parts.streaming = None
    assert layers and set(most) == {2}
    assert all(not layer._forward_pre_hooks for layer in layers)


def test_images_that_find_no_memory_are_decoded_in_tiles(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = decode(parts, latents)
    family, seen = parts.family, list[tuple[int, bool]]()
    original = type(family).decode_pixels

    def short(family: Any, parts: Components, values: Tensor) -> Tensor:
        seen.append((len(values), parts.vae.use_tiling))
        if len(values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(family, parts, values)

    monkeypatch.setattr(type(family), "decode_pixels", short)
    tiled = decode(parts, latents)
    for image, wanted in zip(tiled, plain, strict=True):
        assert image.size == wanted.size
        assert max(high for _, high in ImageChops.difference(image, wanted).getextrema()) < 32
    assert seen == [(2, False), (1, True), (1, True)]
    assert not parts.vae.use_tiling
