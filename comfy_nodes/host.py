"""What is asked of ComfyUI, in one place: folders, models, progress, interruption.

Everything of the host is imported where it is used: descriptions and tests need none of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

log = logging.getLogger("dreambooth")

RUNS = "dreambooth"
"""The folder for runs, in the host's output folder: deleting the pack deletes no training."""


# --- folders ------------------------------------------------------------------------------------
def output_folder() -> Path:
    """The host's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory())


def runs_folder() -> Path:
    """Where runs lie."""
    return output_folder() / RUNS


def input_folder() -> Path:
    """The host's input folder."""
    import folder_paths

    return Path(folder_paths.get_input_directory())


def input_subfolders() -> list[str]:
    """The folders in the input folder, as the host lists them."""
    import folder_paths

    return sorted(folder_paths.get_input_subfolders())


def model_names(kind: str) -> list[str]:
    """The files of a kind, ``checkpoints`` or ``loras``, as the host lists them."""
    import folder_paths

    return list(folder_paths.get_filename_list(kind))


def model_path(kind: str, name: str) -> Path:
    """The file behind a listed name. Raises ``UserError`` if it is gone."""
    import folder_paths

    found = folder_paths.get_full_path(kind, name)
    if not found:
        raise UserError(f"there is no such file among the {kind}", where=name, do="Press R.")
    return Path(found)


def tokenizers() -> dict[str, Path]:
    """The folders of tokenizers that come with the host, by name."""
    import folder_paths

    place = Path(folder_paths.base_path) / "comfy" / "text_encoders"
    return {path.name: path for path in sorted(place.glob("*_tokenizer")) if path.is_dir()}


def model_folder(kind: str) -> Path:
    """The first of the folders for a kind of model: where new files go."""
    import folder_paths

    return Path(folder_paths.get_folder_paths(kind)[0])


def target_path(kind: str, name: str, ending: str = ".safetensors") -> Path:
    """A new file for a kind of model: inside its first folder, and never one that exists.

    ``name`` may name subfolders. Raises ``UserError`` if it leads out of the folder.
    """
    root = model_folder(kind).resolve()
    wanted = name.strip().removesuffix(ending)
    path = (root / f"{wanted}{ending}").resolve()
    if not wanted or not path.is_relative_to(root) or path == root:
        what = f"{name!r} is not a file name inside {root}"
        raise UserError(what, do="Name it like pets/my-dog.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return free(path)


def listed_name(kind: str, path: Path) -> str:
    """A new file as the host lists it."""
    return str(path.resolve().relative_to(model_folder(kind).resolve()))


def free(path: Path) -> Path:
    """``path``, or with a number where that is taken."""
    found, number = path, 2
    while found.exists():
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return found


# --- models -------------------------------------------------------------------------------------
def load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a file, by the host's own loader."""
    import comfy.sd
    import folder_paths

    found = comfy.sd.load_checkpoint_guess_config(
        str(path),
        output_vae=True,
        output_clip=True,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
    )
    return found[0], found[1], found[2]


def predict_v(model: Any) -> Any:
    """MODEL that knows that it predicts v: this host takes every SD1.5 for epsilon."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS["ModelSamplingDiscrete"]
    return kind().patch(model, "v_prediction", False)[0]


def left_out(count: int = 0) -> Any:
    """In the place of an output, or of so many, that is not there: what needs it is not run, and
    that is no error."""
    from comfy_execution.graph import ExecutionBlocker

    return (ExecutionBlocker(None),) * count if count else ExecutionBlocker(None)


@dataclass(frozen=True)
class Sampling:
    """How an image is drawn."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int


def samplers() -> list[str]:
    """The host's samplers."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """The host's noise schedules."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SCHEDULERS)


def draw(model: Any, clip: Any, vae: Any, prompt: str, how: Sampling) -> Image.Image:
    """An image by the host's own nodes."""
    import nodes

    encode = nodes.CLIPTextEncode()
    wanted, unwanted = encode.encode(clip, prompt)[0], encode.encode(clip, "")[0]
    empty = nodes.EmptyLatentImage().generate(how.width, how.height, 1)[0]
    latent = nodes.common_ksampler(
        model, how.seed, how.steps, how.cfg, how.sampler, how.scheduler, wanted, unwanted, empty
    )[0]
    return to_pictures(vae.decode(latent["samples"]))[0]


def free_models() -> None:
    """Takes the host's models off the GPU; it loads them again by itself when it needs them."""
    import comfy.model_management as management

    management.unload_all_models()
    management.soft_empty_cache()


def has_gpu() -> bool:
    """Whether the host works on anything but the CPU."""
    import comfy.model_management as management

    return bool(management.get_torch_device().type != "cpu")


def gpu_memory() -> int:
    """Bytes of memory that the host's GPU has in all: its own models leave it. 0 on a CPU."""
    import comfy.model_management as management

    device = management.get_torch_device()
    return 0 if device.type == "cpu" else int(management.get_total_memory(device))


def stop_if_interrupted() -> None:
    """Raises the host's own exception if somebody pressed its cancel button."""
    import comfy.model_management as management

    management.throw_exception_if_processing_interrupted()


def cancelled() -> bool:
    """Whether the cancel button was pressed since this, or the host itself, last asked."""
    import comfy.model_management as management

    if not management.processing_interrupted():
        return False
    management.interrupt_current_processing(False)
    return True


def interrupted() -> bool:
    """For helpers that ask: never True, since it raises."""
    stop_if_interrupted()
    return False


CURVES = "dreambooth.curves"
"""The message to the page that has a run's curves; ``web/results.js`` hears it."""


# --- what a node shows --------------------------------------------------------------------------
class Progress:
    """A node's bar, image and line of text."""

    def __init__(self, node_id: str | None) -> None:
        import comfy.utils

        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._line = ""

    def show(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        """Moves the bar. Raises the host's exception if it was interrupted."""
        preview = ("JPEG", picture, 512) if picture is not None else None
        self._bar.update_absolute(done, max(total, 1), preview)

    def say(self, line: str) -> None:
        """Shows a line below the node, where the host has such a place."""
        if line == self._line or self._node_id is None:
            return
        self._line = line
        try:
            from server import PromptServer

            PromptServer.instance.send_progress_text(line, self._node_id)
        except (ImportError, AttributeError):
            log.debug("this host shows no text on nodes")

    def draw(self, curves: Mapping[str, Any]) -> None:
        """Shows curves on the node: this pack's own script in the page draws them."""
        if self._node_id is None:
            return
        try:
            from server import PromptServer

            server = PromptServer.instance
            server.send_sync(CURVES, {"node": self._node_id, **curves}, server.client_id)
        except (ImportError, AttributeError):
            log.debug("this host sends nothing to its page")


def load_images(paths: Sequence[Path]) -> Tensor:
    """Image files as the host's IMAGE: [B, H, W, 3] in 0–1; one size, that of the first."""
    from PIL import Image

    found: list[Image.Image] = []
    for path in paths:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if found and picture.size != found[0].size:
            picture = picture.resize(found[0].size, Image.Resampling.LANCZOS)
        found.append(picture)
    return from_pictures(found or [Image.new("RGB", (64, 64))])


def from_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Images of one size as the host's IMAGE."""
    import numpy
    import torch

    arrays = [numpy.asarray(one.convert("RGB")).astype("float32") / 255.0 for one in pictures]
    return torch.from_numpy(numpy.stack(arrays))


def to_pictures(images: Tensor) -> list[Image.Image]:
    """The host's IMAGE as images."""
    from PIL import Image

    return [Image.fromarray((one.clamp(0, 1) * 255).round().byte().cpu().numpy()) for one in images]


def to_masks(mask: Tensor) -> list[Image.Image]:
    """The host's MASK, [B, H, W] or [H, W] in 0–1, as grey images."""
    from PIL import Image

    arrays = (mask.reshape(-1, *mask.shape[-2:]).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(one) for one in arrays]


def readable_folder(text: str) -> Path:
    """A folder that a person named: absolute, or below the host's input folder."""
    path = Path(text.strip().strip('"')).expanduser()
    path = path if path.is_absolute() else input_folder() / path
    if not path.is_dir():
        raise UserError("there is no such folder", where=path)
    return path
