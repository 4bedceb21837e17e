"""By what names in it a model file is known. Data for ``detect``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """A kind of file, and fragments of tensor names that give it away."""

    kind: str
    family: str | None
    label: str
    all_of: tuple[str, ...]
    none_of: tuple[str, ...] = ()

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is of this kind."""
        names = list(names)
        return all(any(part in name for name in names) for part in self.all_of) and not any(
            part in name for name in names for part in self.none_of
        )


_LDM = "model.diffusion_model."

ADAPTER_FRAGMENTS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    ".lora.down.",
    ".lora.up.",
    ".lora_linear_layer.",
    "_lora.down.",
    "_lora.up.",
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w2",
    ".oft_blocks",
    ".oft_diag",
    ".oft_R.",
    ".lora_magnitude_vector",
    ".dora_scale",
)
"""Any of these in a name makes a file an adapter."""

ADAPTER_ENDINGS = (".diff", ".diff_b")
"""Whole changes of a weight or bias. Only at a name's end: ``model.diffusion_model`` is none."""

SIGNATURES: tuple[Signature, ...] = (
    # Families that this program does not train, by parts that only they have.
    Signature("checkpoint", "flux", "a Flux model", ("double_blocks.", "img_attn.norm.key_norm")),
    Signature(
        "checkpoint", "flux", "a Flux model", ("single_transformer_blocks.", "norm1_context")
    ),
    Signature("checkpoint", "sd3", "a Stable Diffusion 3 model", ("joint_blocks.", "x_block.")),
    Signature(
        "checkpoint",
        "sd3",
        "a Stable Diffusion 3 model",
        ("transformer_blocks.", "norm1_context.linear", "pos_embed.proj"),
    ),
    Signature("checkpoint", "deepfloyd", "a DeepFloyd IF model", ("add_embedding.pool.",)),
    Signature(
        "checkpoint", "deepfloyd", "a DeepFloyd IF model", ("encoder_hid_proj", "add_k_proj")
    ),
    Signature("checkpoint", "cascade", "a Stable Cascade model", ("clip_txt_mapper.",)),
    Signature("checkpoint", "cascade", "a Stable Cascade model", (".channelwise.0.weight",)),
    Signature("checkpoint", "auraflow", "an AuraFlow model", ("double_layers.0.attn.w1q",)),
    Signature("checkpoint", "pixart", "a PixArt model", ("adaln_single.emb.",)),
    Signature("checkpoint", "wan", "a Wan video model", ("head.modulation", "blocks.0.self_attn")),
    Signature("checkpoint", "ltx", "an LTX video model", ("patchify_proj.", "scale_shift_table")),
    Signature("checkpoint", "hunyuan", "a Hunyuan model", ("individual_token_refiner.",)),
    Signature("checkpoint", "lumina", "a Lumina or Z-Image model", ("cap_embedder.0.weight",)),
    Signature(
        "checkpoint", "qwen", "a Qwen-Image model", ("txt_in.", "img_mlp.net", "txt_mlp.net")
    ),
    Signature("checkpoint", "svd", "a Stable Video Diffusion model", (_LDM, "time_stack")),
    Signature("checkpoint", "upscaler", "a Stable Diffusion upscaler", (_LDM, "low_scale_model")),
    Signature(
        "checkpoint", "upscaler", "a Stable Diffusion upscaler", (f"{_LDM}label_emb.weight",)
    ),
    Signature(
        "checkpoint", "unclip", "a Stable Diffusion unCLIP model", (_LDM, "embedder.model.visual.")
    ),
    # Parts and relatives of Stable Diffusion.
    Signature("motion module", None, "an AnimateDiff motion module", ("motion_modules.",)),
    Signature("controlnet", None, "a ControlNet", ("control_model.input_blocks.",)),
    Signature("controlnet", None, "a ControlNet", ("controlnet_cond_embedding.",)),
    Signature("controlnet", None, "a ControlNet", ("input_hint_block.",)),
    Signature("controlnet", None, "a ControlNet-LLLite", ("lllite_unet_",)),
    Signature("ip-adapter", None, "an IP-Adapter", ("image_proj.", "ip_adapter.")),
    Signature("t2i-adapter", None, "a T2I-Adapter", ("adapter.body.0.",)),
    Signature("t2i-adapter", None, "a T2I-Adapter", ("body.0.block1.", "conv_in.")),
    Signature("gligen", None, "a GLIGEN part", ("position_net.", "fuser.")),
    Signature("vae", "taesd", "a tiny autoencoder (TAESD)", ("taesd_decoder.",)),
    Signature("vae", "taesd", "a tiny autoencoder (TAESD)", ("3.conv.0.weight", "3.conv.2.weight")),
    Signature("vae", None, "a VAE", ("decoder.up.0.block.0.", "encoder.down.0."), (_LDM,)),
    Signature("vae", None, "a VAE", ("decoder.up_blocks.0.", "encoder.down_blocks.0."), (_LDM,)),
    Signature(
        "unet",
        None,
        "a UNet in diffusers names",
        ("down_blocks.0.resnets.0.", "conv_in.weight", "time_embedding.linear_1."),
    ),
    Signature(
        "unet",
        None,
        "a UNet without its prefix",
        ("input_blocks.0.0.weight", "out.2.weight"),
        (_LDM,),
    ),
    Signature(
        "text encoder", "t5", "a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention",)
    ),
    Signature("clip vision", None, "a CLIP vision model", ("vision_model.encoder.layers.",)),
    Signature(
        "text encoder", None, "a CLIP text encoder", ("encoder.layers.0.self_attn.q_proj",), (_LDM,)
    ),
    Signature(
        "text encoder", None, "an OpenCLIP text encoder", ("transformer.resblocks.0.",), (_LDM,)
    ),
    Signature("embedding", None, "a textual inversion embedding", ("emb_params",)),
    Signature("upscaler", None, "an ESRGAN upscaler", ("RRDB_trunk.",)),
    Signature("upscaler", None, "an ESRGAN upscaler", ("body.0.rdb1.",)),
    Signature("upscaler", None, "an ESRGAN upscaler", ("model.1.sub.0.RDB1.",)),
    Signature("upscaler", None, "a SwinIR upscaler", ("residual_group.blocks.0.", "conv_first.")),
    Signature("optimizer", None, "an optimizer's state", ("exp_avg_sq",)),
)
"""In order: the first that fits names the file."""

FOREIGN = tuple(
    signature
    for signature in SIGNATURES
    if signature.kind == "checkpoint" and signature.family not in ("flux", "sd3", "lumina", "qwen")
)
"""Models of families whose layers are not known here, some under names that known families have."""

MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file it points to",
        "Fetch the file itself with `git lfs pull`, or download it from the model's page",
    ),
    (
        b"GGUF",
        "a GGUF file, of which the denoiser of a rectified-flow family can be a base",
        "Get any other model as .safetensors",
    ),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "Get the model as .safetensors"),
    (b"\x89PNG", "a PNG image", "Give a model file"),
    (b"\xff\xd8\xff", "a JPEG image", "Give a model file"),
    (b"RIFF", "a RIFF file (WebP, WAV, AVI)", "Give a model file"),
    (b"\x1f\x8b", "a gzip archive", "Unpack it and give the model file inside"),
    (b"\xfd7zXZ", "an xz archive", "Unpack it and give the model file inside"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it and give the model file inside"),
    (b"Rar!", "a RAR archive", "Unpack it and give the model file inside"),
    (b"PK\x03\x04", "a zip archive", "Unpack it and give the model file inside"),
    (b"PK\x05\x06", "an empty zip archive", "Give a model file"),
    (b"%PDF", "a PDF document", "Give a model file"),
    (b"\x93NUMPY", "a NumPy array", "Give a model file"),
)
"""First bytes, what they mean, and what to do."""
