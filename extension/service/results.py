"""What runs have made, and putting it where the host lists it."""

from __future__ import annotations

import contextlib
import glob
import re
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth_core.disk import copy_file, replacing_folder, write_text
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.hosting.warm import shared
from dreambooth_core.jobs import RunFolder
from dreambooth_core.jobs.files import to_json

from ..host.base import Host
from .headers import is_embedding, metadata_of, names_of, version_of
from .paths import free_name
from .records import read_json, receipt_of
from .types import Published, Saved

LIST = "published.json"
"""In a run's folder: what of it is where the host lists it."""


class Results:
    """Saved steps of runs, and their copies in the host's folders."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._publishing = threading.Lock()

    def saved(self, run: RunFolder) -> list[Saved]:
        """Everything that a host can load, the first step first."""
        receipt = receipt_of(run)
        final = receipt.get("result", {}).get("file")
        steps: dict[str, int] = {}
        samples: dict[int, list[str]] = {}
        for event in run.events:
            step, path = event.get("step"), event.get("path")
            if not isinstance(step, int) or not isinstance(path, str):
                continue
            if event["kind"] == "saved" and event.get("result"):
                steps[path] = step
            elif event["kind"] == "sample":
                samples.setdefault(step, []).append(str(run.path / path))
        listed = self._listed(run)
        found = []
        for path, step in sorted(steps.items(), key=lambda item: item[1]):
            file = run.path / path
            if file.exists():
                found.append(
                    Saved(
                        step=step,
                        path=str(file),
                        kind=_kind_of(file),
                        final=path == final,
                        samples=samples.get(step, []),
                        published=listed[path].name if path in listed else "",
                    )
                )
        return found

    def published(self, run: RunFolder) -> list[Published]:
        """What is still there of what was put into the host's folders."""
        return list(self._listed(run).values())

    def was_published(self, run: RunFolder) -> bool:
        """Whether anything of a run ever was; what the user deleted there since stays deleted."""
        return bool(read_json(run.path / LIST))

    def publish(self, run: RunFolder, step: int | None) -> Published:
        """Copies a saved step (by default the last) to where the host lists it.

        Raises:
            UserError: the run has saved no such step, or it cannot be copied.
        """
        saved = [one for one in self.saved(run) if step is None or one.step == step]
        if not saved:
            steps = ", ".join(str(one.step) for one in self.saved(run)) or "none"
            raise UserError("there is no such saved step", where=run.name, do=f"Saved: {steps}.")
        chosen = next((one for one in saved if one.final), saved[-1])
        relative = run.relative(chosen.path)
        with self._publishing:
            listed = self._listed(run)
            if relative in listed:
                return listed[relative]
            try:
                made = self._place(run, chosen)
            except (OSError, SaveFailed) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise UserError(f"it cannot be put into the host's folder: {reason}") from error
            self._note(run, relative, made)
        self.host.refresh_networks()
        return made

    def prompt_for(self, name: str) -> str:
        """``trigger words <lora:name:1>`` for a file of the Lora folder.

        Raises:
            UserError: there is no such adapter.
        """
        for path in sorted(self.host.folders().loras.rglob("*")):
            if path.suffix in (".safetensors", ".pt", ".ckpt") and name in (path.stem, path.name):
                return self._prompt(path)
        raise UserError(f"there is no adapter named {name!r} in the Lora folder")

    def _prompt(self, path: Path) -> str:
        told = read_json(path.with_suffix(".json"))
        words = told.get("activation text")
        if words is None:
            words = metadata_of(path).get("modelspec.trigger_phrase", "")
        weight = told.get("preferred weight")
        number = float(weight) if isinstance(weight, (int, float)) and weight else 1.0
        return f"{words} {self.host.network_tag(path.stem, number)}".strip()

    # -- putting it there --------------------------------------------------------------------

    def _place(self, run: RunFolder, saved: Saved) -> Published:
        """Copies the file and what belongs beside it."""
        here = self.host.folders()
        source = Path(saved.path)
        target_folder = {
            "adapter": here.loras,
            "checkpoint": here.checkpoints,
            "embedding": here.embeddings,
        }[saved.kind]
        target_folder.mkdir(parents=True, exist_ok=True)
        target = free_name(target_folder, source.name.removesuffix(".safetensors"), ".safetensors")
        self._copy(source, target, saved.kind)
        _copy_configuration(source, target)
        words = metadata_of(target).get("modelspec.trigger_phrase", "")
        if saved.kind == "adapter":
            words = self._place_token(source, run, words)
        if self.host.settings().preview and saved.samples:
            _copy(Path(saved.samples[0]), target.with_suffix(".png"))
        self._write_sidecar(run, saved, target, words)
        prompt = {
            "adapter": lambda: self._prompt(target),
            "checkpoint": lambda: words,
            "embedding": lambda: target.stem,
        }[saved.kind]()
        return Published(target.stem, saved.kind, str(target), prompt)

    def _place_token(self, source: Path, run: RunFolder, words: str) -> str:
        """The token that was learned together with an adapter, if one was; and the trigger words
        with the name under which the host knows it: that of its file."""
        step = source.stem.removeprefix(run.name)
        for file in run.path.glob(f"*{glob.escape(step)}.safetensors"):
            word = file.stem.removesuffix(step)
            if file != source and not re.search(r"-\d{6}$", word) and is_embedding(file):
                folder = self.host.folders().embeddings
                folder.mkdir(parents=True, exist_ok=True)
                target = free_name(folder, file.stem, ".safetensors")
                _copy(file, target)
                words = re.sub(rf"\b{re.escape(word)}\b", target.stem.replace("\\", "_"), words)
        return words

    def _copy(self, source: Path, target: Path, kind: str) -> None:
        """Names that the host reads: kohya's for adapters, one file for models."""
        if source.is_file() and (kind != "adapter" or _is_kohya(source)):
            _copy(source, target)
            return
        asked = {"source": source, "target": target}
        shared().task("convert", asked | ({"layout": "host"} if kind == "adapter" else {}))

    def _write_sidecar(self, run: RunFolder, saved: Saved, target: Path, words: str) -> None:
        """What the host's card shows (extra networks, "edit metadata")."""
        weight = self.host.settings().weight
        told: dict[str, Any] = {
            "description": f"Step {saved.step} of the run {run.name}, made with DreamBooth.",
            "sd version": version_of(target),
            "activation text": words,
            "preferred weight": weight,
            "negative text": "",
            "notes": "",
        }
        if saved.kind != "adapter":
            told = {"description": told["description"], "notes": words}
        write_text(target.with_suffix(".json"), to_json(told, indent=4) + "\n")

    # -- remembering it ----------------------------------------------------------------------

    def _listed(self, run: RunFolder) -> dict[str, Published]:
        """What was published and is still there, by its path in the run's folder.

        A file that has changed since, because the run was resumed, does not count: it must get
        another name, or the host goes on using the old one.
        """
        found = {}
        for path, told in read_json(run.path / LIST).items():
            if isinstance(told, dict) and told.get("stamp") == _stamp(run.path / path):
                with contextlib.suppress(TypeError):
                    one = Published(**told["as"])
                    if Path(one.path).exists():
                        found[path] = one
        return found

    def _note(self, run: RunFolder, path: str, made: Published) -> None:
        known = read_json(run.path / LIST)
        known[path] = {"stamp": _stamp(run.path / path), "as": asdict(made)}
        write_text(run.path / LIST, to_json(known, indent=2) + "\n")


def _kind_of(file: Path) -> str:
    """Fine-tuned models are written as a diffusers folder too."""
    beside = file if file.is_dir() else file.with_suffix("")
    if (beside / "model_index.json").is_file():
        return "checkpoint"
    return "embedding" if is_embedding(file) else "adapter"


def _is_kohya(file: Path) -> bool:
    return all(re.match(r"lora_(unet|te\d?)_", name) for name in names_of(file))


def _stamp(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]


def _copy(source: Path, target: Path) -> None:
    """A file appears under its name only when it is whole.

    A second name for the same bytes where the disk can: models are large, and the engine replaces
    files and never changes them.
    """
    copy_file(source, target, link=True)


def _copy_configuration(source: Path, target: Path) -> None:
    """The yaml beside a model, and the text encoders' folders that it names."""
    yaml = source.with_suffix(".yaml")
    if not yaml.is_file():
        return
    text = yaml.read_text(encoding="utf-8")
    for folder in source.parent.glob(f"{source.stem}-*"):
        if folder.is_dir() and str(folder) in text:
            there = target.with_name(target.stem + folder.name.removeprefix(source.stem))
            with replacing_folder(there) as part:
                for file in filter(Path.is_file, folder.iterdir()):
                    copy_file(file, part / file.name)
            text = text.replace(str(folder), str(there))
    write_text(target.with_suffix(".yaml"), text)
