"""Tiny rectified-flow models of every family, as diffusers folders.

Random, each under 3 million weights. Real classes of diffusers and transformers, with the
constants of the real models wherever these change what is computed: the latents' shift and scale,
schedulers, rotary axes that fill a head, an autoencoder of 8 px and 16 channels, templates and the
layers that are read. ``DiffusionPipeline.from_pretrained(folder)`` loads each as it is.
``WRITERS`` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from helpers import flow_tokenizers as tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

HEADS, HEAD = 8, 16
WIDTH = HEADS * HEAD
"""Of every tiny transformer."""
AXES = (4, 6, 6)
"""Rotary axes, of a head in all."""
TEXT = 32
"""Width of every text encoder."""
SMALL_QWEN: dict[str, Any] = {
    "hidden_size": TEXT,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
ANIMA_TOKENS = 32
"""Least tokens of its prompts; 512 in the real one, most of them zero."""
VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}


def z_image(folder: Path, *, shift: float = 3.0) -> Path:
    """Z-Image: Qwen3, one stream. The shift is Turbo's; the base model has 6."""
    torch.manual_seed(0)
    denoiser = ZImageTransformer2DModel(
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT,
        axes_dims=list(AXES),
        axes_lens=[1024, 64, 64],
    )
    # Made without values.
    for token in (denoiser.x_pad_token, denoiser.cap_pad_token):
        nn.init.normal_(token, std=0.02)
    tokenizer = tokenizers.qwen()
    config = Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=3, head_dim=16, **SMALL_QWEN)
    return _write(
        folder,
        ZImagePipeline,
        transformer=denoiser,
        vae=_vae(0.1159, 0.3611),
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )


def flux2_klein(folder: Path, *, distilled: bool = False, channels: int = 32) -> Path:
    """Flux.2 Klein: the layers 9, 18 and 27 of Qwen3, folded and normalised latents."""
    torch.manual_seed(0)
    tokenizer = tokenizers.qwen()
    config = Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, head_dim=16, **SMALL_QWEN)
    vae = _flux2_vae(channels)
    return _write(
        folder,
        Flux2KleinPipeline,
        transformer=_flux2_denoiser(vae, guidance=False),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    )


def flux2_dev(folder: Path, *, head: int = 16) -> Path:
    """Flux.2 dev: the layers 10, 20 and 30 of Mistral, an embedding of the guidance.

    Args:
        head: numbers of one of Mistral's heads; the real one's are narrower together than it is.
    """
    torch.manual_seed(0)
    tokenizer = tokenizers.mistral()
    text = {**SMALL_QWEN, "model_type": "mistral", "vocab_size": len(tokenizer)}
    config = Mistral3Config(
        text_config={**text, "num_hidden_layers": 31, "head_dim": head},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
    )
    vae = _flux2_vae(8)
    return _write(
        folder,
        Flux2Pipeline,
        transformer=_flux2_denoiser(vae, guidance=True),
        vae=vae,
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def _flux2_denoiser(vae: AutoencoderKLFlux2, *, guidance: bool) -> Flux2Transformer2DModel:
    channels = 4 * vae.config.latent_channels
    return Flux2Transformer2DModel(
        in_channels=channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=2 * channels // HEAD,  # it passes on what it gets, and more
        joint_attention_dim=3 * TEXT,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def _flux2_vae(channels: int = 32) -> AutoencoderKLFlux2:
    """With statistics that training would have left; fresh ones would hide a forgotten
    normalisation. The real one has 32 channels."""
    vae = AutoencoderKLFlux2(**_levels(), latent_channels=channels)
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def flux(folder: Path, *, guidance: bool = True) -> Path:
    """Flux.1: dev with an embedding of the guidance, schnell without."""
    torch.manual_seed(0)
    clip, t5 = tokenizers.clip(), tokenizers.t5()
    denoiser = FluxTransformer2DModel(
        **_double_and_single(),
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance,
    )
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if guidance
        else FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    return _write(
        folder,
        FluxPipeline,
        transformer=denoiser,
        vae=_vae(0.1159, 0.3611),
        text_encoder=CLIPTextModel(_clip_config(clip)),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(_t5_config(t5)),
        tokenizer_2=t5,
        scheduler=scheduler,
    )


def chroma(folder: Path) -> Path:
    """Chroma: Flux.1 with T5 alone and a small network in place of the modulations."""
    torch.manual_seed(0)
    t5 = tokenizers.t5()
    denoiser = ChromaTransformer2DModel(
        **_double_and_single(),
        joint_attention_dim=TEXT,
        approximator_num_channels=16,
        approximator_hidden_dim=WIDTH,
        approximator_layers=2,
    )
    return _write(
        folder,
        ChromaPipeline,
        transformer=denoiser,
        vae=_vae(0.1159, 0.3611),
        text_encoder=T5EncoderModel(_t5_config(t5)),
        tokenizer=t5,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def qwen_image(folder: Path) -> Path:
    """Qwen-Image: Qwen2.5-VL's text, an autoencoder of video."""
    torch.manual_seed(0)
    tokenizer = tokenizers.qwen()
    scaling = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
    config = Qwen2_5_VLConfig(
        text_config={
            **SMALL_QWEN,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "rope_scaling": scaling,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        vision_config={**VISION, "out_hidden_size": TEXT},
        **_vision_ids(tokenizer),
    )
    denoiser = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT,
        axes_dims_rope=AXES,
    )
    return _write(
        folder,
        QwenImagePipeline,
        transformer=denoiser,
        vae=_qwen_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    )


def sd3(folder: Path, *, medium: bool = True) -> Path:
    """Stable Diffusion 3: two CLIPs and T5; 3.5 medium has double attention and norms of q, k.

    CLIP reads 16 tokens, not 77: all of them go into the transformer, and would take its time.
    """
    torch.manual_seed(0)
    clip = tokenizers.clip(length=16)
    other, t5 = tokenizers.clip(pad="!", length=16), tokenizers.t5()
    denoiser = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT + 16,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=24,
        dual_attention_layers=(0,) if medium else (),
        qk_norm="rms_norm" if medium else None,
    )
    first = CLIPTextModelWithProjection(_clip_config(clip))
    nn.init.eye_(first.text_projection.weight)  # CLIP-L's pooled answer is not projected
    return _write(
        folder,
        StableDiffusion3Pipeline,
        transformer=denoiser,
        vae=_vae(0.0609, 1.5305),
        text_encoder=first,
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(other, layers=4, act="gelu")),
        tokenizer_2=other,
        text_encoder_3=T5EncoderModel(_t5_config(t5, width=2 * TEXT + 16)),
        tokenizer_3=t5,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def lumina2(folder: Path) -> Path:
    """Lumina 2: Gemma 2, one stream, three times as many heads of queries as of keys."""
    torch.manual_seed(0)
    tokenizer = tokenizers.gemma()
    denoiser = Lumina2Transformer2DModel(
        sample_size=8,
        hidden_size=9 * HEAD,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=9,
        num_kv_heads=3,
        multiple_of=32,
        axes_dim_rope=AXES,
        axes_lens=(300, 64, 64),
        cap_feat_dim=TEXT,
    )
    return _write(
        folder,
        Lumina2Pipeline,
        transformer=denoiser,
        vae=_vae(0.1159, 0.3611),
        text_encoder=_gemma(tokenizer, layers=3),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def sana(folder: Path) -> Path:
    """Sana: Gemma 2, linear attention, an autoencoder of 32 px."""
    torch.manual_seed(0)
    tokenizer = tokenizers.gemma()
    denoiser = SanaTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        num_layers=2,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT,
        sample_size=16,
    )
    levels = (8, 8, 8, 16, 32, 32)
    vae = AutoencoderDC(
        attention_head_dim=8,
        encoder_block_out_channels=levels,
        decoder_block_out_channels=levels,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )
    return _write(
        folder,
        SanaPipeline,
        transformer=denoiser,
        vae=vae,
        text_encoder=_gemma(tokenizer, layers=2),
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(
            flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True
        ),
    )


def anima(folder: Path) -> Path:
    """Anima: Qwen3 and T5's tokens through a conditioner; a modular pipeline."""
    torch.manual_seed(0)
    qwen, t5 = tokenizers.qwen(), tokenizers.t5()
    text = Qwen3Config(vocab_size=len(qwen), num_hidden_layers=2, head_dim=16, **SMALL_QWEN)
    parts: dict[str, Any] = {
        "text_encoder": Qwen3Model(text),
        "text_conditioner": AnimaTextConditioner(
            source_dim=TEXT,
            target_dim=TEXT,
            model_dim=TEXT,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=len(t5),
            min_sequence_length=ANIMA_TOKENS,
        ),
        "transformer": CosmosTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD,
            num_layers=2,
            text_embed_dim=TEXT,
            adaln_lora_dim=32,
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        ),
        "vae": _qwen_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "tokenizer": qwen,
        "t5_tokenizer": t5,
    }
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(**parts)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def krea2(folder: Path) -> Path:
    """Krea 2: several layers of Qwen3-VL side by side, Qwen-Image's autoencoder."""
    torch.manual_seed(0)
    tokenizer = tokenizers.qwen()
    denoiser = Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 4,
        intermediate_size=2 * WIDTH,
        timestep_embed_dim=32,
        text_hidden_dim=TEXT,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    )
    return _write(
        folder,
        Krea2Pipeline,
        transformer=denoiser,
        vae=_qwen_vae(),
        text_encoder=_qwen3_vl(tokenizer, layers=4),
        tokenizer=tokenizer,
        text_encoder_select_layers=(1, 2, 3),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=6400
        ),
    )


def ideogram4(folder: Path) -> Path:
    """Ideogram 4: thirteen layers of Qwen3-VL, folded latents, a second denoiser for guidance."""
    torch.manual_seed(0)
    tokenizer = tokenizers.qwen()
    vae = _flux2_vae(8)
    shape: dict[str, Any] = {
        "in_channels": 32,
        "num_layers": 2,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "intermediate_size": WIDTH,
        "adaln_dim": 32,
        "llm_features_dim": 13 * TEXT,
        "mrope_section": (4, 2, 2),
        "rope_theta": 100,  # of 5 million a small head would see no column
    }
    return _write(
        folder,
        Ideogram4Pipeline,
        transformer=Ideogram4Transformer2DModel(**shape),
        unconditional_transformer=Ideogram4Transformer2DModel(**shape),
        vae=vae,
        text_encoder=_qwen3_vl(tokenizer, layers=36),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def hidream(folder: Path) -> Path:
    """HiDream: two CLIPs, T5 and all layers of Llama, four experts in every block."""
    torch.manual_seed(0)
    clip, t5, llama = tokenizers.clip(), tokenizers.t5(), tokenizers.mistral()
    config = LlamaConfig(vocab_size=len(llama), num_hidden_layers=2, head_dim=16, **SMALL_QWEN)
    denoiser = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        caption_channels=[TEXT + 16, TEXT],
        text_emb_dim=2 * TEXT,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    return _write(
        folder,
        HiDreamImagePipeline,
        transformer=denoiser,
        vae=_vae(0.1159, 0.3611),
        text_encoder=CLIPTextModelWithProjection(_clip_config(clip, positions=248)),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(
            _clip_config(clip, layers=4, act="gelu", positions=248)
        ),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(_t5_config(t5, width=TEXT + 16)),
        tokenizer_3=t5,
        text_encoder_4=LlamaForCausalLM(config),
        tokenizer_4=llama,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


WRITERS: dict[str, Callable[..., Path]] = {
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "flux2_dev": flux2_dev,
    "flux": flux,
    "chroma": chroma,
    "qwen_image": qwen_image,
    "sd3": sd3,
    "lumina2": lumina2,
    "krea2": krea2,
    "ideogram4": ideogram4,
    "hidream": hidream,
    "sana": sana,
    "anima": anima,
}


def _gemma(tokenizer: Any, *, layers: int) -> Gemma2Model:
    """Gemma 2, with twice as many heads of queries as of keys."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Gemma2Model(config)


def _write(folder: Path, pipeline: type[Any], **parts: Any) -> Path:
    """Saves the parts as a folder."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipeline(**parts).save_pretrained(folder)
    return folder


def _levels() -> dict[str, Any]:
    """An autoencoder's levels that make 8 px of one cell."""
    return {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    }


def _vae(shift: float, scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        **_levels(),
        latent_channels=16,
        shift_factor=shift,
        scaling_factor=scale,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _qwen3_vl(tokenizer: Any, *, layers: int) -> Qwen3VLModel:
    config = Qwen3VLConfig(
        text_config={
            **SMALL_QWEN,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "head_dim": 16,
        },
        vision_config={**VISION, "out_hidden_size": TEXT, "deepstack_visual_indexes": []},
        **_vision_ids(tokenizer),
    )
    return Qwen3VLModel(config)


def _qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1)


def _double_and_single() -> dict[str, Any]:
    return {
        "in_channels": 64,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "axes_dims_rope": AXES,
    }


def _clip_config(
    tokenizer: Any, layers: int = 3, act: str = "quick_gelu", *, positions: int = 77
) -> CLIPTextConfig:
    return CLIPTextConfig(
        max_position_embeddings=positions,
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=64,
        projection_dim=TEXT,
        num_hidden_layers=layers,
        hidden_act=act,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_config(tokenizer: Any, *, width: int = TEXT) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )


def _vision_ids(tokenizer: Any) -> dict[str, int]:
    """The ids by which a model of text and images knows where images stand."""
    names = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
