"""What a run has learned: an adapter, a whole model, a word, or an adapter and a word."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.disk import copy_file
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt
from dreambooth_core.jobs.receipt import read_made

from . import host, patching
from .adapters import Adapter
from .description import Output

SUFFIX = ".safetensors"
_STEPPED = re.compile(rf"(.+)-(\d{{6,}}){re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Learned:
    """The files of a run's result, or of one of its saved steps."""

    run: str
    step: int
    file: Path | None
    """An adapter, or a whole model."""
    embedding: Path | None = None
    word: str = ""
    """What prompts call the embedding by."""
    last: bool = False
    """Whether it is of the run's end."""

    @property
    def adapter(self) -> Any:
        """For the output ADAPTER: a run that learned a word alone leaves it out."""
        if self.file is None:
            return host.left_out()
        return Adapter(self.file, self.run, self.step)

    def name(self) -> str:
        """What prompts call the embedding by in this host, once it lies among the host's."""
        if self.embedding is None:
            return ""
        step = "" if self.last else f"-{self.step:06d}"
        plain = re.sub(r"[^\w.-]+", "-", self.run)
        listed = publish(self.embedding, "embeddings", f"{plain}{step}{self.embedding.suffix}")
        return f"{host.RUNS}/{listed.stem}"

    def put_on(self, model: Any, clip: Any, unet: float = 1.0, text: float = 1.0) -> Any:
        """Clones of MODEL and CLIP that have learned it."""
        if self.file is not None:
            model, clip = patching.patch(model, clip, self.file, unet, text)
        if self.embedding is not None:
            clip = patching.knowing(clip, self.word, self.name())
        return model, clip

    @property
    def lines(self) -> list[str]:
        """How a learned word is used; nothing without one."""
        if self.embedding is None:
            return []
        return [f"{self.word} is embedding:{self.name()} in prompts for other CLIPs"]


WORD_OUTPUT = Output(
    "STRING",
    "EMBEDDING",
    "The learned word as ComfyUI writes it in prompts. The CLIP from here knows it by its token.",
)


def results_of(folder: RunFolder) -> dict[int, Learned]:
    """The saved results of a run by step, the last one included."""
    files: dict[int, dict[str, Path]] = {}
    for path in folder.path.iterdir():
        if match := _STEPPED.fullmatch(path.name):
            files.setdefault(int(match[2]), {})[match[1]] = path
    found, word = {}, str(read_receipt(folder).get("result", {}).get("token") or "")
    for step, named in files.items():
        file = named.pop(folder.name, None)
        stem, token = next(iter(named.items()), ("", None))
        found[step] = Learned(folder.name, step, file, token, word or stem)
    last = last_of(folder)
    if last is not None:
        found[last.step] = last
    return dict(sorted(found.items()))


def best_of(folder: RunFolder) -> Learned | None:
    """What a run had learned at the best of the steps that it measured, if it measured any."""
    measured = [event["best"] for event in folder.events if event["kind"] == "measured"]
    if not measured or measured[-1] is None:
        return None
    step = int(measured[-1])
    found = results_of(folder).get(step)
    ends = f"-best{SUFFIX}"
    kept = {path.name.removesuffix(ends): path for path in folder.path.glob(f"*{ends}")}
    if found is not None or not kept:
        return found
    file = kept.pop(folder.name, None)
    word, embedding = next(iter(kept.items()), ("", None))
    word = str(read_receipt(folder).get("result", {}).get("token") or word)
    return Learned(folder.name, step, file, embedding, word)


def last_of(folder: RunFolder) -> Learned | None:
    """What a run has learned at its end; None before, or where its files are gone."""
    if not read_receipt(folder).get("result"):
        return None
    made = read_made(folder)
    if not made.file.exists():
        return None
    file = None if made.file == made.embedding else made.file
    return Learned(folder.name, made.steps, file, made.embedding, made.token, last=True)


def learned(folder: RunFolder, step: int | None) -> Learned:
    """What a run has learned at a saved step, or at its end. Raises ``UserError`` if it is gone."""
    found = last_of(folder) if step is None else results_of(folder).get(step)
    if found is None:
        raise UserError(
            "the run's result is gone", where=folder.path, do="Delete the run's folder."
        )
    return found


def publish(file: Path, kind: str, name: str) -> Path:
    """Lists a file among the host's, without a second copy where the disk can do that."""
    target = host.model_folder(kind) / host.RUNS / name
    if target.exists() and _is_copy(target, file):
        return target
    copy_file(file, target, link=True)
    return target


def _is_copy(target: Path, file: Path) -> bool:
    there, here = target.stat(), file.stat()
    if os.path.samestat(there, here):
        return True
    return there.st_size == here.st_size and there.st_mtime >= here.st_mtime
