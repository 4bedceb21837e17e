"""The models that training can start from."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from dreambooth_core.bases.embedded import EMBEDDED, embedded_folder
from dreambooth_core.errors import UserError
from dreambooth_core.hosting.warm import shared

from ..host.base import Host
from .paths import Paths
from .types import Base, BaseInfo, Values


class Bases:
    """The host's checkpoints, and the models that come with the engine."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root
        self.host = host
        self._known: dict[tuple[str, int], BaseInfo] = {}
        self._looking = threading.Lock()

    def all(self) -> list[Base]:
        """In the host's order, the embedded ones last."""
        current = self.host.current_checkpoint()
        found = [
            Base(one.name, str(one.path), current=one.path == current)
            for one in self.host.checkpoints()
        ]
        return [*found, *(Base(name, name) for name in EMBEDDED)]

    def current(self) -> Base:
        """What the host generates with, else the first there is."""
        bases = self.all()
        return next((base for base in bases if base.current), bases[0])

    def named(self, name: str) -> Base:
        """A base by its name or path.

        Raises:
            UserError: there is none.
        """
        for base in self.all():
            if name in (base.name, base.path, Path(base.path).stem):
                return base
        raise UserError(f"the host lists no model named {name!r}", do="Refresh the list.")

    def info(self, name: str, paths: Paths) -> BaseInfo:
        """Family and prediction type. Files that are not models have a ``problem``.

        Raises:
            UserError: there is no such base, or it may not be used.
        """
        base = self._find(name, paths)
        file = embedded_folder(base.path) if base.path in EMBEDDED else Path(base.path)
        try:
            facts = file.stat()
        except OSError as error:
            raise UserError(f"it cannot be read: {error.strerror}", where=file) from error
        key = (str(file), facts.st_mtime_ns)
        with self._looking:
            if key not in self._known:
                self._known[key] = self._look(base, file)
            return self._known[key]

    def _find(self, name: str, paths: Paths) -> Base:
        try:
            return self.named(name)
        except UserError:
            found = paths.read(name, "model", "the base")
            return Base(found.name, str(found))

    def parts(self, model: str, paths: Paths) -> Values:
        """The other files of a base whose denoiser is a file of its own; none for others."""
        if not model or model in EMBEDDED or not Path(model).is_file():
            return {}
        return self.info(model, paths).parts

    def _look(self, base: Base, file: Path) -> BaseInfo:
        folders = self.host.folders()
        asked = {
            "file": file,
            "beside": [path for path in folders.parts if path.is_dir()],
            "tokenizers": list(folders.tokenizers),
        }
        try:
            told = shared(self.root).task("inspect", asked)
        except UserError as error:
            return BaseInfo(base.name, base.path, "", "", "", False, error.line)
        if parts := told.get("parts"):
            return _split(base, parts)
        family = str(told.get("family") or "")
        return BaseInfo(
            name=base.name,
            path=base.path,
            label=str(told.get("label", "")),
            family=family,
            prediction_type=str(told.get("prediction_type") or ""),
            trainable=not (problem := _problem(told)),
            problem=problem,
        )


def _split(base: Base, parts: dict[str, Any]) -> BaseInfo:
    """A base in several files, as ``inspect`` found them."""
    keys = {
        "base.text_encoders": parts["text_encoders"],
        "base.vae": parts["vae"],
        "base.tokenizer": parts["tokenizer"],
    }
    missing = parts["missing"]
    return BaseInfo(
        name=base.name,
        path=base.path,
        label=parts["label"],
        family=parts["family"],
        prediction_type="",
        trainable=not missing,
        problem=f"{parts['label']} also needs {' and '.join(missing)}" if missing else "",
        parts={key: value for key, value in keys.items() if value},
    )


def _problem(told: dict[str, Any]) -> str:
    if told.get("kind") not in ("checkpoint", "diffusers"):
        return f"this is {told.get('label', 'no checkpoint')}"
    if not told.get("trainable"):
        return f"{told.get('label')}: the engine does not train these"
    return ""
