"""The commands that are tried on a failing disk, each over something older."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.faults.disk import Scene, digest_of, once


def scenes() -> list[Scene]:
    """All of them; cheap ones first."""
    adapters = [
        Scene("merge", _merge, ("out.safetensors",)),
        Scene("resize", _resize, ("out.safetensors",)),
        Scene("adapter to peft", _to_peft, ("out",)),
        Scene("adapter to peft, beside others", _to_peft_beside, ("out/unet", "out/text_encoder")),
    ]
    models = [
        Scene("to a folder", _to_folder, ("model",)),
        Scene("to a folder, beside others", _to_folder_beside, PARTS),
        Scene("to a file", _to_file, ("model.safetensors",)),
        Scene("to a file with yaml", _to_file_with_yaml, FILE_AND_YAML),
        Scene("to a pickle", _to_pickle, ("model.ckpt",), anew=True),
        Scene("from a pickle, to a file", _from_pickle, ("model.safetensors",)),
        Scene("bake to a file", partial(_bake, "model.safetensors"), ("model.safetensors",)),
        Scene("bake to a folder", partial(_bake, "model"), ("model",)),
        Scene("compat, to a folder", _compat, ("model",)),
        Scene("extract", _extract, ("out.safetensors",)),
    ]
    runs = [
        _run(
            "run",
            SAMPLES,
            "run.safetensors",
            passing=("run-000003.safetensors",),
            decoration=tuple(f"samples/step-00000{step}-p0-0.png" for step in (3, 4)),
        ),
        _run("run, peft", ("save.layout=peft",), "run", passing=("run-000003",)),
        _run("run, whole model", ("method.kind=full",), "run.safetensors"),
        _run(
            "run, diffusers",
            ("save.arrangement=diffusers",),
            LORA_FILE,
            f"checkpoint-4/{LORA_FILE}",
            passing=(f"checkpoint-3/{LORA_FILE}",),
        ),
        _run(
            "run, whole model, diffusers",
            ("save.arrangement=diffusers", "method.kind=full", "method.train_text_encoder=true"),
            passing=("checkpoint-3",),
            together=("model_index.json", "unet", "text_encoder", "vae", "tokenizer", "scheduler"),
        ),
        _run(
            "run, whole model, numbered",
            ("save.arrangement=shivam", "method.kind=full", "method.train_text_encoder=true"),
            "4",
            passing=("3",),
        ),
        _first_run(),
    ]
    return [*adapters, *models, *runs]


LORA_FILE = "pytorch_lora_weights.safetensors"
PARTS = tuple(
    f"model/{name}"
    for name in (
        "model_index.json",
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "feature_extractor",
        "single_file_remainder.safetensors",
    )
)
FILE_AND_YAML = ("model.safetensors", "model.yaml", "model-clip")


OF_UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
OF_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def _adapter(path: Path, seed: int, names: Sequence[str] = (OF_UNET, OF_TEXT)) -> Path:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, 32, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(32, 4, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path)
    return path


def _here(arguments: Sequence[str]) -> None:
    """An older result, by the engine itself."""
    from dreambooth_core.commands.main import main

    if main(list(arguments)) != 0:
        raise RuntimeError(" ".join(arguments))


def _merge(folder: Path) -> list[str]:
    for name, seed in (("a", 1), ("b", 2), ("out", 3)):
        _adapter(folder / f"{name}.safetensors", seed)
    return ["merge", "a.safetensors", "b.safetensors", "--out", "out.safetensors"]


def _resize(folder: Path) -> list[str]:
    for name, seed in (("a", 1), ("b", 2)):
        _adapter(folder / f"{name}.safetensors", seed)
    _here(["resize", "a.safetensors", "out.safetensors", "--rank", "2"])
    return ["resize", "b.safetensors", "out.safetensors", "--rank", "2"]


def _to_peft(folder: Path) -> list[str]:
    _here(["convert", str(_adapter(folder / "a.safetensors", 1)), "out", "--layout", "peft"])
    _adapter(folder / "b.safetensors", 2)
    return ["convert", "b.safetensors", "out", "--layout", "peft"]


def _to_peft_beside(folder: Path) -> list[str]:
    arguments = _to_peft(folder)
    (folder / "out" / "notes.txt").write_text("mine")
    return arguments


def _base(folder: Path, seed: int, prediction: str = "epsilon") -> str:
    from tests.helpers.tiny import tiny_sd1

    tiny_sd1(folder, seed=seed)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "prediction_type": prediction}))
    return folder.name


def _to_folder(folder: Path) -> list[str]:
    for name, seed in (("old", 1), ("new", 2)):
        _base(folder / name, seed)
        _here(["convert", name, f"{name}.safetensors", "--yaml", "never"])
    _here(["convert", "old.safetensors", "model"])
    return ["convert", "new.safetensors", "model"]


def _to_folder_beside(folder: Path) -> list[str]:
    arguments = _to_folder(folder)
    (folder / "model" / "notes.txt").write_text("mine")
    return arguments


def _to_file(folder: Path) -> list[str]:
    _base(folder / "old", 1)
    _base(folder / "new", 2)
    _here(["convert", "old", "model.safetensors", "--yaml", "never"])
    return ["convert", "new", "model.safetensors", "--yaml", "never"]


def _to_file_with_yaml(folder: Path) -> list[str]:
    _base(folder / "old", 1)
    _base(folder / "new", 2, "v_prediction")
    _here(["convert", "old", "model.safetensors"])
    return ["convert", "new", "model.safetensors"]


def _to_pickle(folder: Path) -> list[str]:
    _base(folder / "old", 1)
    _base(folder / "new", 2)
    _here(["convert", "old", "model.ckpt", "--yaml", "never"])
    return ["convert", "new", "model.ckpt", "--yaml", "never"]


def _from_pickle(folder: Path) -> list[str]:
    for name, seed in (("old", 1), ("new", 2)):
        _base(folder / name, seed)
        _here(["convert", name, f"{name}.ckpt", "--yaml", "never"])
    _here(["convert", "old.ckpt", "model.safetensors", "--yaml", "never"])
    return ["convert", "new.ckpt", "model.safetensors", "--yaml", "never"]


def _bake(out: str, folder: Path) -> list[str]:
    _base(folder / "base", 1)
    for name, seed in (("a", 1), ("b", 2)):
        _adapter(folder / f"{name}.safetensors", seed, [OF_TEXT])
    _here(["bake", "base", "a.safetensors", "--out", out])
    return ["bake", "base", "b.safetensors", "--out", out]


def _extract(folder: Path) -> list[str]:
    for name, seed in (("base", 1), ("old", 2), ("new", 3)):
        _base(folder / name, seed)
    options = ["out.safetensors", "--rank", "2"]
    _here(["extract", "base", "old", *options])
    return ["extract", "base", "new", *options]


def _compat(folder: Path) -> list[str]:
    script = ["compat", "convert_original_stable_diffusion_to_diffusers", "--from_safetensors"]
    for name, seed in (("old", 1), ("new", 2)):
        _base(folder / name, seed)
        _here(["convert", name, f"{name}.safetensors"])
    _here([*script, "--checkpoint_path", "old.safetensors", "--dump_path", "model"])
    return [*script, "--checkpoint_path", "new.safetensors", "--dump_path", "model"]


RUN = "runs/run"
RESUME = ("train", "--resume", RUN)


def _training(folder: Path, *changes: str) -> list[str]:
    """A run's command line, and what it needs."""
    from tests.helpers.tiny import draw_pictures

    _base(folder / "base", 1)
    draw_pictures(folder / "images")
    concept = "{images: images, instance_prompt: a photo of sks ball, class_prompt: a ball}"
    return [
        "train",
        "base.model=base",
        f"concepts=[{concept}]",
        "data.resolution=64",
        "data.crop=center",
        "method.rank=4",
        "optim.learning_rate=1e-3",
        "run.output=runs",
        "log.tensorboard=false",
        *changes,
    ]


def _run(
    name: str,
    changes: tuple[str, ...],
    *results: str,
    passing: tuple[str, ...] = (),
    decoration: tuple[str, ...] = (),
    together: tuple[str, ...] = (),
) -> Scene:
    """A run that was done and is to do two steps more; its result is there already.

    Args:
        passing: what step 3 leaves. If the kill comes when its checkpoint is there and this is not
            yet, the run resumes behind it.
        decoration: what may fail with a warning.
        together: results that are of one age.
    """

    def prepare(folder: Path) -> list[str]:
        _here(_training(folder, "run.steps=2", "save.at_end=true", *changes))
        return [*RESUME, "run.steps=4", "save.every_steps=1"]

    steps = [f"checkpoints/step-00000{step}" for step in (2, 3, 4)]
    things = (*results, *together, *passing, *decoration, *steps)
    return Scene(
        name,
        prepare,
        _in_run(things),
        separate=True,
        together=_in_run(together),
        anew=True,
        digest=_learned,
        passing=_in_run(passing),
        decoration=_in_run(decoration),
    )


def _first_run() -> Scene:
    """A run from its very start: class images, caches on the disk, checkpoints, samples, result."""
    changes = (
        "prior.enabled=true",
        "prior.num_class_images=2",
        "prior.num_inference_steps=1",
        "data.cache=disk",
        *SAMPLES,
        "run.steps=2",
        "save.every_steps=1",
    )
    passing = _in_run(("run-000001.safetensors",))
    decoration = _in_run(tuple(f"samples/step-00000{step}-p0-0.png" for step in (1, 2)))
    kept = ("run.safetensors", "checkpoints/step-000001", "checkpoints/step-000002")

    def again(place: Path, arguments: Sequence[str]) -> Sequence[str]:
        run = place / RUN
        if (run / "config.yaml").is_file():
            return RESUME
        if run.is_dir():  # an empty one is no run: the next one takes the next name
            shutil.rmtree(run)
        return arguments

    return Scene(
        "run, from its start",
        partial(_training_with, changes),
        (*_in_run(kept), *passing, *decoration),
        separate=True,
        anew=True,
        digest=_learned,
        passing=passing,
        decoration=decoration,
        again=again,
    )


SAMPLES = (
    "validation.prompts=[a ball]",
    "validation.every_steps=1",
    "validation.num_inference_steps=1",
)


def _training_with(changes: tuple[str, ...], folder: Path) -> list[str]:
    return _training(folder, *changes)


def _in_run(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{RUN}/{name}" for name in names)


def _learned(path: Path) -> str:
    """Of what a run has written, all but what tells when: every tensor, to the bit."""
    if (path / "state.json").is_file():
        from dreambooth_core.trainer.state import load_state

        load_state(path)  # refuses what is not whole
        return digest_of(path / "trained.safetensors") + digest_of(path / "states.pt")
    if path.is_file():
        return once(LOOKS.get(path.suffix, digest_of), path)
    return "".join(
        f"{file.relative_to(path)}{once(_tensors, file) if file.suffix == '.safetensors' else ''}"
        for file in sorted(path.rglob("*"))
    )


def _pixels(path: Path) -> str:
    import hashlib

    from PIL import Image

    with Image.open(path) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def _tensors(path: Path) -> str:
    import hashlib

    import numpy
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + numpy.ascontiguousarray(tensor.float().numpy()).tobytes())
    return digest.hexdigest()


LOOKS = {".safetensors": _tensors, ".png": _pixels}
"""What of a file is learned: not what tells when it was."""
