"""Taggers that name what drawings show in Danbooru's words: WD Tagger v3, its ViT kinds.

They come as timm's files (``config.json``, ``model.safetensors``, ``selected_tags.csv``). timm's
vision transformer without a class token, whose patches are averaged, computes what transformers'
SigLIP classifier does: the weights are moved to its names, and any that has no place there means a
model of another kind, which is refused. See https://huggingface.co/SmilingWolf/wd-vit-tagger-v3.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth_core.data.images import to_tensor
from dreambooth_core.disk.reading import read_bytes, read_json
from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import read_header
from dreambooth_core.vision.pretrained import Pretrained

MODELS = {
    "wd-vit": Pretrained("SmilingWolf/wd-vit-tagger-v3", "about 380 MB"),
    "wd-vit-large": Pretrained("SmilingWolf/wd-vit-large-tagger-v3", "about 1.3 GB"),
}
TAGS = "selected_tags.csv"
FILES = ("config.json", TAGS, "model.safetensors")
LARGEST_LIST = 16_000_000
"""Bytes of a list of tags: those of today have a third of a million."""
GENERAL, CHARACTER = "0", "4"
"""Danbooru's categories that a caption is made of; the rest rates images."""
ACTIVATIONS = {"": "gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""timm's names and transformers'."""
HEAD = 64
"""Channels of an attention head in timm's vision transformers from tiny to large."""
_LONG = re.compile(r"[^\W_]{2}")

BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""A block's layers by timm's name and by transformers'; besides, timm's ``attn.qkv`` is three."""


@dataclass(frozen=True)
class Thresholds:
    """How likely a tag must be to be said."""

    general: float = 0.35
    character: float = 0.85


@dataclass(frozen=True)
class Tag:
    """What one of a model's outputs means."""

    words: str
    category: str


class Tagger:
    """A model and what its outputs mean; says tags, the likeliest first, characters before all.

    Args:
        model: takes ``[N, 3, side, side]`` in [-1, 1] with blue first, gives logits ``[N, tags]``.
        side: pixels of the square that it looks at.
    """

    def __init__(
        self,
        model: nn.Module,
        tags: Sequence[Tag],
        side: int,
        device: torch.device,
        thresholds: Thresholds,
    ) -> None:
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.model, self.device = model.to(device, self.dtype).eval(), device
        self.tags, self.side, self.thresholds = tags, side, thresholds

    @torch.no_grad()
    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """The tags of each image, with commas between them."""
        pixels = torch.stack([self._pixels(image) for image in images])
        logits = self.model(pixels.to(self.device, self.dtype)).logits
        likely: Tensor = logits.float().sigmoid().cpu()
        return [self._said(row.tolist()) for row in likely]

    def _pixels(self, image: Image.Image) -> Tensor:
        """The whole image on a white square, as they were trained."""
        longest = max(image.size)
        square = ImageOps.pad(image, (longest, longest), color="white")
        square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return to_tensor(square).flip(0)

    def _said(self, likely: Sequence[float]) -> str:
        found = []
        for tag, chance in zip(self.tags, likely, strict=True):
            character = tag.category == CHARACTER
            least = self.thresholds.character if character else self.thresholds.general
            if tag.category in (GENERAL, CHARACTER) and chance >= least:
                found.append((not character, -chance, tag.words))
        return ", ".join(words for _, _, words in sorted(found))


def is_tagger(name: str) -> bool:
    """Whether a short name, hub id or folder is a tagger's."""
    if name in MODELS or os.path.isfile(os.path.join(name, TAGS)):
        return True
    return name.startswith("SmilingWolf/wd-") and not os.path.isdir(name)


def load_tagger(
    name: str, device: torch.device, thresholds: Thresholds, *, download: bool = False
) -> Tagger:
    """A tagger by its short name, a hub id, or a folder.

    Raises:
        UserError: as :meth:`~dreambooth_core.vision.pretrained.Pretrained.load`.
    """
    wanted = MODELS.get(name) or Pretrained(name)
    model, tags, side = wanted.load(
        "tagger",
        lambda **more: _load(wanted.source, local=more.get("local_files_only", False)),
        download=download,
    )
    return Tagger(model, tags, side, device, thresholds)


def _load(source: str, *, local: bool) -> tuple[nn.Module, list[Tag], int]:
    if os.path.isdir(source):
        config, tags, weights = (Path(source) / name for name in FILES)
    else:
        from huggingface_hub import hf_hub_download

        config, tags, weights = (
            Path(hf_hub_download(source, name, local_files_only=local)) for name in FILES
        )
    read_header(weights)
    model, side = build(read_json(config, "this is no tagger"), load_file(weights))
    words = read_tags(tags)
    outputs = int(model.get_parameter("classifier.weight").shape[0])
    if len(words) != outputs:
        what = f"{len(words)} tags are named for {outputs} outputs"
        raise UserError(what, where=tags, do="Fetch the model's files anew.")
    return model, words, side


def read_tags(file: Path) -> list[Tag]:
    """What each output means, in their order.

    Raises:
        UserError: no table with the columns ``name`` and ``category``.
    """
    try:
        text = read_bytes(file, LARGEST_LIST).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return [Tag(in_words(row["name"]), row["category"]) for row in rows]
    except (UnicodeDecodeError, csv.Error, KeyError, AttributeError, TypeError) as error:
        raise UserError("this is no list of tags", where=file) from error


def in_words(tag: str) -> str:
    """A tag as people write it: ``long_hair`` is two words, the face ``^_^`` is none."""
    return tag.replace("_", " ") if _LONG.search(tag) else tag


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """transformers' model with timm's weights, and the pixels of its side.

    Raises:
        UserError: a model of another kind, or one that is not whole.
    """
    from transformers import SiglipConfig, SiglipForImageClassification

    given = config.get("model_args") or {}
    activation = ACTIVATIONS.get(str(given.get("act_layer") or ""))
    if activation is None:
        raise _other_kind(f"its activation is {str(given['act_layer'])[:60]!r}")
    moved = _moved(weights)
    try:
        patches = moved["vision_model.embeddings.patch_embedding.weight"]
        places, width = moved["vision_model.embeddings.position_embedding.weight"].shape
        inner = moved["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        classes = moved["classifier.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise _other_kind(f"{error} is missing") from error
    heads = given.get("num_heads", width // HEAD)
    if type(heads) is not int or heads < 1 or width % heads:
        raise _other_kind(f"{width} channels make no {heads!r:.20} heads")
    layers = 1 + max(int(n.split(".")[3]) for n in moved if n.startswith("vision_model.encoder"))
    side = math.isqrt(places) * patches.shape[-1]
    late = "fc_norm.weight" in weights
    vision = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patches.shape[-1],
        "hidden_act": activation,
        "layer_norm_eps": 1e-6,
        "vision_use_head": False,
    }
    with torch.device("meta"):
        made = SiglipForImageClassification(SiglipConfig(vision_config=vision, num_labels=classes))
    model: nn.Module = _Late(made, width) if late else made
    _fill(model, moved)
    return model, side


class _Late(nn.Module):
    """The norm comes after the patches are averaged, in place of before."""

    def __init__(self, made: Any, width: int) -> None:
        super().__init__()
        made.vision_model.post_layernorm = nn.Identity()
        self.vision_model, self.classifier = made.vision_model, made.classifier
        self.fc_norm = nn.LayerNorm(width, eps=1e-6, device="meta")

    def forward(self, pixels: Tensor) -> Any:
        """As SigLIP's classifier."""
        from transformers.modeling_outputs import ImageClassifierOutput

        averaged = self.vision_model(pixels).last_hidden_state.mean(dim=1)
        return ImageClassifierOutput(logits=self.classifier(self.fc_norm(averaged)))


def _moved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights by transformers' names."""
    found: dict[str, Tensor] = {}
    outside = {
        "patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "norm": "vision_model.post_layernorm",
        "fc_norm": "fc_norm",
        "head": "classifier",
    }
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d{1,2})\.(.+)", layer)
        if name == "pos_embed":
            found["vision_model.embeddings.position_embedding.weight"] = tensor.squeeze(0)
        elif layer in outside:
            found[f"{outside[layer]}.{kind}"] = tensor
        elif block is not None:
            place = f"vision_model.encoder.layers.{int(block[1])}"
            if block[2] == "attn.qkv":
                for part, piece in zip("qkv", tensor.chunk(3), strict=False):
                    found[f"{place}.self_attn.{part}_proj.{kind}"] = piece
            else:
                found[f"{place}.{BLOCK.get(block[2], block[2])}.{kind}"] = tensor
        else:
            raise _other_kind(f"it has {name[:60]}")
    return found


def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts the weights in their places; all there are, and no other."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in [*wanted, *weights]:
        if name not in weights or name not in wanted:
            raise _other_kind(f"{'it has' if name in weights else 'it lacks'} {name[:80]}")
        if weights[name].shape != wanted[name]:
            raise _other_kind(f"{name} is {tuple(weights[name].shape)}")
    model.load_state_dict({n: w.float() for n, w in weights.items()}, assign=True)
    ids = torch.arange(wanted["vision_model.embeddings.position_embedding.weight"][0])
    model.get_submodule("vision_model.embeddings").position_ids = ids.expand(1, -1)


def _other_kind(why: str) -> UserError:
    return UserError(
        f"this tagger is built in another way: {why}", do="Choose wd-vit or wd-vit-large."
    )
