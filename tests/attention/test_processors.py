"""diffusers models give the same results with every kernel, and really use the chosen one."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from dreambooth_core.attention import probe
from dreambooth_core.attention.processors import KernelProcessor, apply_attention

CPU = torch.device("cpu")


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
        sample_size=8,
    )


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=16,
    )


def run(model: UNet2DConditionModel, mask: torch.Tensor | None) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=source)
    text = torch.randn(2, 7, 16, generator=source)
    model.zero_grad()
    out = model(latents, 500, text, encoder_attention_mask=mask).sample
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("masked", [False, True])
def test_a_unet_gives_the_same_output_and_gradients(masked):
    mask = None
    if masked:
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[1, 3:] = False
    model = unet()
    assert set(apply_attention(model, "sdpa", CPU, torch.float32).values()) == {"sdpa"}
    expected = run(model, mask)
    assert set(apply_attention(model, "chunked", CPU, torch.float32).values()) == {"chunked"}
    got = run(model, mask)
    assert len(got) == len(expected) > 50
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_an_autoencoder_gives_the_same_latents_and_pictures():
    model, picture = vae(), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model(picture).sample
    assert apply_attention(model, "chunked", CPU, torch.float32) == {32: "chunked"}
    assert torch.allclose(model(picture).sample, expected, atol=1e-5)


def test_the_chosen_kernel_is_really_called(monkeypatch):
    calls = []

    def counted(*args: object) -> torch.Tensor:
        calls.append(1)
        return probe.chunked_attention(*args)  # type: ignore[arg-type]

    monkeypatch.setitem(probe.IMPLEMENTATIONS, "chunked", counted)
    model = unet()
    apply_attention(model, "chunked", CPU, torch.float32)
    calls.clear()
    run(model, None)
    layers = [m for m in model.modules() if isinstance(m, Attention)]
    assert len(calls) == len(layers) > 0


def test_auto_takes_torchs_own_here_and_can_go_back():
    model = unet()
    apply_attention(model, "chunked", CPU, torch.float32)
    assert all(
        isinstance(m.processor, KernelProcessor)
        for m in model.modules()
        if isinstance(m, Attention)
    )
    apply_attention(model, "auto", CPU, torch.float32)
    assert all(
        isinstance(m.processor, AttnProcessor2_0)
        for m in model.modules()
        if isinstance(m, Attention)
    )


def test_a_foreign_processor_is_left_alone():
    class Foreign(AttnProcessor2_0.__base__):  # type: ignore[misc,name-defined]
        def __call__(self, attn, hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
            return hidden_states

    model = unet()
    layer = next(m for m in model.modules() if isinstance(m, Attention))
    layer.set_processor(Foreign())
    apply_attention(model, "chunked", CPU, torch.float32)
    assert isinstance(layer.processor, Foreign)
