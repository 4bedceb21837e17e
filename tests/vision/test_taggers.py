"""WD taggers: timm's weights compute what timm computes, and likely tags become words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.vision.captions import load_captioner
from dreambooth_core.vision.taggers import (
    Tagger,
    Thresholds,
    build,
    in_words,
    is_tagger,
    load_tagger,
    read_tags,
)

CPU = torch.device("cpu")
WIDTH, INNER, HEADS, LAYERS, PATCH, SIDE = 16, 24, 2, 2, 4, 12
CONFIG = {
    "architecture": "vit_base_patch16_224",
    "model_args": {"act_layer": "gelu_tanh", "class_token": False, "num_heads": HEADS},
}
TAGS = "tag_id,name,category,count\n1,general,9,5\n2,long_hair,0,9\n3,^_^,0,9\n4,miku_(sks),4,7\n"


def weights(late: bool = False, outputs: int = 4) -> dict[str, Tensor]:
    """As timm names those of a vision transformer without a class token."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "head.weight": (outputs, WIDTH),
        "head.bias": (outputs,),
    }
    norms = ["fc_norm" if late else "norm"]
    for n in range(LAYERS):
        for layer, (out, into) in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (INNER, WIDTH),
            "mlp.fc2": (WIDTH, INNER),
        }.items():
            shapes[f"blocks.{n}.{layer}.weight"] = (out, into)
            shapes[f"blocks.{n}.{layer}.bias"] = (out,)
        norms += [f"blocks.{n}.norm1", f"blocks.{n}.norm2"]
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def computed(w: dict[str, Tensor], pixels: Tensor, late: bool) -> Tensor:
    """The logits, written out: norm first, one projection for queries, keys and values."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    patches = F.conv2d(
        pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH
    )
    x = patches.flatten(2).transpose(1, 2) + w["pos_embed"]
    for n in range(LAYERS):
        block = f"blocks.{n}"
        parts = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = parts.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        x = x + linear((shares @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        inner = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"), approximate="tanh")
        x = x + linear(inner, f"{block}.mlp.fc2")
    x = norm(x.mean(1), "fc_norm") if late else norm(x, "norm").mean(1)
    return linear(x, "head")


@pytest.mark.parametrize("late", [False, True])
def test_timms_weights_give_timms_answers(late: bool) -> None:
    own = weights(late)
    model, side = build(CONFIG, own)
    assert side == SIDE
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(pixels).logits, computed(own, pixels, late), rtol=1e-5, atol=1e-5
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "selected_tags.csv").write_text(TAGS)
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_tagger_from_a_folder(folder: Path) -> None:
    """It sees the whole image on white, blue first; and says what it is likely to show."""
    image = Image.new("RGB", (24, 12), (255, 0, 51))
    tagger = load_tagger(str(folder), CPU, Thresholds(0.0, 0.0))
    pixels = tagger._pixels(image)
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels[:, 0, 0].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(pixels[:, 6, 6], torch.tensor([-0.6, -1.0, 1.0]))
    likely = computed(weights(), pixels[None], False).sigmoid()[0].tolist()
    order = ["long hair", "^_^"] if likely[1] >= likely[2] else ["^_^", "long hair"]
    assert tagger.describe([image, image]) == [", ".join(["miku (sks)", *order])] * 2
    by_command = load_captioner(str(folder), CPU, longest=5, thresholds=Thresholds(1.0, 1.0))
    assert isinstance(by_command, Tagger) and by_command.describe([image]) == [""]


def test_each_kind_of_tag_has_its_threshold(folder: Path) -> None:
    tagger = load_tagger(str(folder), CPU, Thresholds(0.35, 0.85))
    assert tagger._said([0.99, 0.4, 0.34, 0.84]) == "long hair"  # a rating is never said
    assert tagger._said([0.0, 0.4, 0.9, 0.85]) == "miku (sks), ^_^, long hair"


def test_underscores_are_spaces_but_in_faces() -> None:
    faces = ("^_^", "o_o", "(o)_(o)", "|_|", ">_<", "6_9", "+_-")
    assert [in_words(face) for face in faces] == list(faces)
    assert in_words("hair_over_one_eye") == "hair over one eye"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda w, c: w.pop("blocks.0.norm1.weight"), "it lacks"),
        (lambda w, c: w.pop("patch_embed.proj.weight"), "is missing"),
        (lambda w, c: w.update({"cls_token": torch.zeros(1, 1, WIDTH)}), "it has cls_token"),
        (lambda w, c: w.update({"blocks.0.ls1.gamma": torch.zeros(WIDTH)}), "it has"),
        (lambda w, c: w.update({"layers.0.x": torch.zeros(1)}), "it has layers.0.x"),
        (lambda w, c: w.update({"head.bias": torch.zeros(9)}), "classifier.bias is"),
        (lambda w, c: c["model_args"].update(act_layer="silu"), "its activation"),
        (lambda w, c: c["model_args"].update(num_heads=5), "make no 5 heads"),
        (lambda w, c: c["model_args"].update(num_heads=0), "heads"),
    ],
)
def test_other_kinds_are_refused(change, what: str) -> None:  # type: ignore[no-untyped-def]
    own, config = weights(), json.loads(json.dumps(CONFIG))
    change(own, config)
    with pytest.raises(UserError, match="built in another way") as refused:
        build(config, own)
    assert what in refused.value.what


@pytest.mark.parametrize("text", ["", "tag_id,name\n1,a\n", "a\0b", "tag_id,name,category\n1\n"])
def test_lists_that_are_none(folder: Path, text: str) -> None:
    (folder / "selected_tags.csv").write_text(text)
    with pytest.raises(UserError, match=r"no list of tags|0 tags are named"):
        load_tagger(str(folder), CPU, Thresholds())
    (folder / "selected_tags.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no list of tags"):
        read_tags(folder / "selected_tags.csv")


def test_which_names_are_taggers(folder: Path, tmp_path: Path) -> None:
    assert all(map(is_tagger, ("wd-vit", str(folder), "SmilingWolf/wd-vit-tagger-v3")))
    assert not any(map(is_tagger, ("blip", str(tmp_path / "none"), "Salesforce/blip")))


def test_one_that_is_not_here_says_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not on this machine") as refused:
        load_captioner("wd-vit", CPU, longest=5)
    assert "380 MB" in str(refused.value.do) and "--download" in str(refused.value.do)
