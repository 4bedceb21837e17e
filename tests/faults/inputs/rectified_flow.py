"""Bases of the rectified-flow families: parts that are missing, cut, quantised or another family's,
adapters of another family, images that cannot be packed."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Expected
from tests.faults.inputs._models import STORE

FOLDERS = (
    "z_image",
    "flux2_klein",
    "flux2_dev",
    "flux",
    "chroma",
    "qwen_image",
    "sd3",
    "lumina2",
    "krea2",
    "ideogram4",
    "hidream",
    "sana",
    "anima",
)
FILES = (
    *("z_image", "flux2_klein", "flux", "chroma", "qwen_image"),
    *("sd3", "lumina2", "krea2", "ideogram4", "hidream"),
)
"""Those whose files of the hosts are tried."""

QUANTISED = {
    "SVDQuant": (".qweight", ".wscales"),
    "SVDQuant, smoothed": (".qweight", ".smooth_factor"),
    "NVFP4": (".weight_scale_2",),
    "bitsandbytes": (".weight.absmax",),
    "GPTQ": (".qweight", ".qzeros"),
}

Options = dict[str, Any]

sys.path.append(str(Path(__file__).parents[2]))  # where pytest finds the helpers, too


def cases() -> Iterator[Case]:
    """Every class of fault, for each family that it can be made for."""
    for name in FOLDERS:
        yield _case(f"{name}: good", lambda place, name=name: _folder(place, name), "accepted")
        yield from _folders(name)
        yield from _shards(name)
        yield from _adapters(name)
    for name in FILES:
        yield _case(f"{name}: good files", lambda place, name=name: _files(name), "accepted")
        yield from _missing(name)
        yield from _cut(name)
        yield from _quantised(name)
        yield from _others(name)


def _case(
    name: str, change: Callable[[Path], Options], expected: Expected = "refused", **more: Any
) -> Case:
    """``check`` of a base, with one image; ``change`` gives the options that name it."""

    def make(place: Path) -> list[str]:
        _as_small_as_they_are()
        options = {**change(place), **more}
        _image(place / "images")
        concept = "{images: images, instance_prompt: a photo of sks dog}"
        given = [f"{key}={_text(value)}" for key, value in options.items()]
        plain = ["data.resolution=64", "data.crop=center", "log.tensorboard=false"]
        return ["check", f"concepts=[{concept}]", *plain, *given]

    return Case("flow", name, make, expected)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps([str(each) for each in value])
    return str(value)


def _image(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    Image.new("RGB", (128, 128), "green").save(folder / "a.png")


def _as_small_as_they_are() -> None:
    """What no shape tells, as the tiny bases have it."""
    from helpers import flow_bases

    from dreambooth_core.families import flux, hidream, ideogram4, krea2, lumina2, qwen_image, sd3
    from dreambooth_core.families.host_files import language as host_language
    from dreambooth_core.families.host_files import texts as host_texts
    from dreambooth_core.families.host_files import vaes as host_vaes
    from dreambooth_core.families.stable_diffusion import text

    host_vaes.NORM_GROUPS = 4
    text.HEAD_WIDTH = 16
    for family in (flux, qwen_image, krea2, lumina2):
        family.AXES = flow_bases.AXES  # type: ignore[attr-defined]
    sd3.HEAD = hidream.HEAD = flow_bases.HEAD
    hidream.MOST = [16, 16]
    ideogram4.MROPE, ideogram4.ROPE = [4, 2, 2], 100
    krea2.LAYERS = (1, 2, 3)
    host_texts.CLIP_L_LAYERS = 3
    host_language.QWEN25_HEAD = host_language.GEMMA2_HEAD = host_language.LLAMA_HEAD = 16
    plain = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 1024}
    host_language.LLAMA_FACTS = plain
    host_language.QWEN3_FACTS["rope_theta"] = 10000.0
    host_language.QWEN3_VL_FACTS["rope_theta"] = 500000.0


# -- good bases, each made once -------------------------------------------------------------------


def _made(name: str, write: Callable[[Path], object]) -> Path:
    made = STORE / name
    if not made.exists():
        STORE.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=STORE))
        write(place)
        try:
            place.rename(made)
        except OSError:  # another case was faster
            shutil.rmtree(place)
    return made


def _base(name: str) -> Path:
    """A good one in diffusers' layout."""
    from helpers import flow_bases

    return _made(f"flow-{name}", lambda place: flow_bases.WRITERS[name](place / "base")) / "base"


def _family(name: str) -> Any:
    from dreambooth_core.families.registry import FAMILIES

    return FAMILIES["flux2" if name == "flux2_klein" else name]


def _folder(place: Path, name: str) -> Options:
    """A copy to damage."""
    shutil.copytree(_base(name), place / "base")
    return {"base.model": "base"}


def _files(name: str) -> Options:
    """The good one's files."""
    from helpers import host_files

    family = _family(name)
    made = _made(
        f"flow-{name}-files",
        lambda place: host_files.write_split(family, _base(name), place / "files"),
    )
    return {
        "base.model": made / "files" / f"{family.denoiser}.safetensors",
        "base.vae": made / "files" / "vae.safetensors",
        "base.text_encoders": [made / "files" / f"{n}.safetensors" for n in family.text_encoders],
        "base.tokenizer": _base(name),
    }


# -- diffusers folders ----------------------------------------------------------------------------


def _folders(name: str) -> Iterator[Case]:
    family = _family(name)
    for part in (*family.networks, *family.tokenizers, "scheduler"):

        def lacking(place: Path, part: str = part) -> Options:
            options = _folder(place, name)
            shutil.rmtree(place / "base" / part)
            return options

        yield _case(f"{name}: a folder without its {part}", lacking)
    # Stable Diffusion 3 has a table of places, here of 24 x 16 px.
    for resolution in (24, 72, 100, *([400] if name == "sd3" else [])):
        yield _case(
            f"{name}: images of {resolution} px",
            lambda place: _folder(place, name),
            **{"data.resolution": resolution},
        )
    other = FOLDERS[(FOLDERS.index(name) + 2) % len(FOLDERS)]
    for part in ("transformer", "vae", "text_encoder", "tokenizer"):

        def mixed(place: Path, part: str = part) -> Options:
            options = _folder(place, name)
            shutil.rmtree(place / "base" / part)
            shutil.copytree(_base(other) / part, place / "base" / part)
            return options

        # All tiny text encoders are as wide, and some families have one autoencoder.
        expected: Expected = "refused" if part == "transformer" else "either"
        yield _case(f"{name}: the {part} of {other}", mixed, expected)


def _shards(name: str) -> Iterator[Case]:
    """A denoiser in several files."""

    def sharded(place: Path) -> tuple[Path, list[Path], Options]:
        from safetensors.torch import load_file, save_file

        options = _folder(place, name)
        folder = place / "base" / "transformer"
        whole = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(whole)
        whole.unlink()
        names = sorted(tensors)
        files = [folder / f"{whole.stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
        places = {key: files[2 * i // len(names)] for i, key in enumerate(names)}
        for file in files:
            kept = {key: tensors[key] for key in names if places[key] == file}
            save_file(kept, file, {"format": "pt"})
        index = folder / f"{whole.name}.index.json"
        weights = {key: file.name for key, file in places.items()}
        index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        return index, files, options

    def good(place: Path) -> Options:
        return sharded(place)[2]

    def cut(place: Path) -> Options:
        _, files, options = sharded(place)
        files[1].write_bytes(files[1].read_bytes()[:-50])
        return options

    def gone(place: Path) -> Options:
        _, files, options = sharded(place)
        files[0].unlink()
        return options

    def named(place: Path) -> Options:
        index, _, options = sharded(place)
        index.write_text(index.read_text().replace("-00002-of", "-00003-of"))
        return options

    yield _case(f"{name}: two shards", good, "accepted")
    yield _case(f"{name}: a shard that is cut", cut)
    yield _case(f"{name}: a shard that is gone", gone)
    yield _case(f"{name}: an index of other shards", named)


# -- the hosts' files -----------------------------------------------------------------------------


def _missing(name: str) -> Iterator[Case]:
    for key in ("base.vae", "base.text_encoders", "base.tokenizer"):

        def lacking(place: Path, key: str = key) -> Options:
            return {each: value for each, value in _files(name).items() if each != key}

        yield _case(f"{name}: files without {key}", lacking)


def _cut(name: str) -> Iterator[Case]:
    for key in ("base.model", "base.vae", "base.text_encoders"):
        for share in (0.0, 0.001, 0.9999):

            def cut(place: Path, key: str = key, share: float = share) -> Options:
                options = _files(name)
                value = options[key]
                whole = Path(value[-1] if isinstance(value, list) else value).read_bytes()
                file = place / "cut.safetensors"
                file.write_bytes(whole[: int(share * len(whole))])
                options[key] = [*value[:-1], file] if isinstance(value, list) else file
                return options

            yield _case(f"{name}: {key} cut after {share:.2%}", cut)


def _quantised(name: str) -> Iterator[Case]:
    for kind, names in QUANTISED.items():

        def quantised(place: Path, names: tuple[str, ...] = names) -> Options:
            import torch
            from safetensors.torch import load_file, save_file

            options = _files(name)
            tensors = load_file(options["base.model"])
            layer = next(
                k for k in sorted(tensors) if k.endswith(".weight") and tensors[k].dim() > 1
            )
            tensors |= {layer.removesuffix(".weight") + each: torch.zeros(2) for each in names}
            save_file(tensors, place / "quantised.safetensors")
            return {**options, "base.model": "quantised.safetensors"}

        yield _case(f"{name}: {kind}", quantised)


def _others(name: str) -> Iterator[Case]:
    """Parts of two families, and parts in each other's places."""
    others = [each for each in FILES if each != name]
    for other in dict.fromkeys((others[0], others[1], others[FILES.index(name) - 1])):
        for key in ("base.vae", "base.text_encoders", "base.tokenizer"):

            def mixed(place: Path, other: str = other, key: str = key) -> Options:
                return {**_files(name), key: _files(other)[key]}

            # Some families have one autoencoder; the texts' widths are all the same.
            apart = key == "base.vae" and "flux2_klein" in (name, other)
            yield _case(f"{name}: {key} of {other}", mixed, "refused" if apart else "either")

    def turned(place: Path) -> Options:
        options = _files(name)
        return {**options, "base.model": options["base.vae"], "base.vae": options["base.model"]}

    yield _case(f"{name}: autoencoder and denoiser in each other's places", turned)


# -- adapters -------------------------------------------------------------------------------------


def _adapters(name: str) -> Iterator[Case]:
    """A run that starts from an adapter: of the same family, of another one, and damaged."""
    other = FOLDERS[(FOLDERS.index(name) + 2) % len(FOLDERS)]

    def start(place: Path, family: str, change: Callable[[Mapping[str, Any]], Any]) -> Options:
        from safetensors.torch import save_file

        save_file(change(_adapter(family)), place / "a.safetensors")
        return {**_folder(place, name), "method.init_from": "a.safetensors"}

    yield _case(f"{name}: its own adapter", lambda place: start(place, name, dict), "accepted")
    yield _case(f"{name}: an adapter of {other}", lambda place: start(place, other, dict))
    yield _case(
        f"{name}: an adapter without its halves",
        lambda place: start(
            place, name, lambda found: {k: v for k, v in found.items() if "lora_A" in k}
        ),
    )
    yield _case(
        f"{name}: an adapter of another width",
        lambda place: start(
            place, name, lambda found: {k: v.repeat(1, 2) for k, v in found.items()}
        ),
    )


def _adapter(name: str) -> dict[str, Any]:
    """LoRA of the attention of a base, in diffusers' names."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(_base(name) / "transformer" / "diffusion_pytorch_model.safetensors")
    made = {}
    for key, tensor in weights.items():
        if key.endswith(("to_q.weight", "to_v.weight")):
            module = f"transformer.{key.removesuffix('.weight')}"
            made[f"{module}.lora_A.weight"] = torch.full((2, tensor.shape[1]), 0.01)
            made[f"{module}.lora_B.weight"] = torch.full((tensor.shape[0], 2), 0.01)
    return made
