"""A test-only pack for ComfyUI: its stock loaders and samplers accept pocket's family.

pocket is a Stable Diffusion 1 of small widths; the host knows families by their widths. The
autoencoder is the usual one with fewer channels, which the host has no hook for, so its VAE
class is told them here.
"""

from __future__ import annotations

from typing import ClassVar

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
from comfy.supported_models_base import ClipTarget

NODE_CLASS_MAPPINGS: dict[str, type] = {}

WIDTH = 64
TEXT = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": WIDTH,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
AUTOENCODER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": WIDTH,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 0,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class Times(float):
    """A factor on a number of channels, which stays a whole number."""

    def __mul__(self, channels: float) -> int:
        return int(float(self) * channels)

    __rmul__ = __mul__


class TextModel(comfy.sd1_clip.SDClipModel):
    """CLIP's text tower with pocket's sizes."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            return_projected_pooled=False,
            textmodel_json_config=dict(TEXT),
            model_options=model_options or {},
        )


class Clip(comfy.sd1_clip.SD1ClipModel):
    """The same, as the host wraps it."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=TextModel
        )


class Pocket(comfy.supported_models.SD15):
    """pocket's UNet among the host's families."""

    unet_config: ClassVar = {
        **comfy.supported_models.SD15.unet_config,
        "context_dim": WIDTH,
        "model_channels": WIDTH,
    }
    unet_extra_config: ClassVar = {
        "num_heads": 4,
        "num_head_channels": -1,
        "channel_mult": [Times(1), Times(1), Times(1.5), Times(1.5)],
    }

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sd1_clip.SD1Tokenizer, Clip)


class SmallVAE(comfy.sd.VAE):
    """The host's VAE, which is told pocket's channels where it meets them."""

    def __init__(self, sd=None, **options):
        first = (sd or {}).get("decoder.conv_in.weight")
        if first is not None and first.shape[0] == WIDTH:
            options["config"] = {"params": AUTOENCODER}
        super().__init__(sd=sd, **options)


comfy.supported_models.models.append(Pocket)
comfy.sd.VAE = SmallVAE
