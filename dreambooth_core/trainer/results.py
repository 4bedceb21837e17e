"""Writing what was learned: an adapter in the layout asked for, or the whole model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.devices import STORED
from dreambooth_core.disk import remove
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.embeddings import write_embedding
from dreambooth_core.trainer.best import keep
from dreambooth_core.trainer.metadata import result_metadata

if TYPE_CHECKING:
    from dreambooth_core.trainer.session import Session

PLAIN = re.compile(r"[^\w.-]+")
"""What a file name had better not have."""


def write_result(session: Session, name: str) -> Path:
    """Writes the present state of what is trained into the run's folder.

    Returns:
        The file, or for peft's layout the folder. A fine-tuned model is written as one file and,
        under the same name without an ending, as a diffusers folder.

    Raises:
        SaveFailed: it could not be written.
    """
    config = session.config
    dtype = STORED[config.save.precision]
    metadata = result_metadata(
        config,
        session.parts,
        name=name,
        step=session.step,
        epoch=session.plan.epoch_of(max(session.step - 1, 0)) + 1,
        captions=captions_by_concept(session),
        size=session.items.entries[0].size,
    )
    adapter = session.method.adapter()
    embedding = session.method.embedding()
    if embedding is not None:
        written = write_embedding(embedding_path(session, name), embedding, metadata)
        if adapter is None:
            return written
    if config.save.arrangement != "run":
        from dreambooth_core.trainer.arrangements import write_arranged

        return write_arranged(session, metadata, final=name == session.folder.name)
    target = session.folder.path / name
    if adapter is None:
        return write_model(session, target, metadata)
    adapter.metadata.update(metadata)
    ending = "" if config.save.layout == "peft" else ".safetensors"
    path = target.with_name(f"{name}{ending}")
    return write_adapter(adapter, path, config.save.layout, dtype=dtype)


def embedding_path(session: Session, name: str) -> Path:
    """Where the learned token of the result ``name`` lies: hosts know it by its file's name."""
    folder = session.folder
    return folder.path / f"{_word(session)}{name.removeprefix(folder.name)}.safetensors"


def keep_best(session: Session, name: str, result: Path) -> Path:
    """Keeps the result ``name``, that was just written, as ``<run>-best`` too, and a learned token
    as ``<token>-best``; returns the file that counts.

    Raises:
        SaveFailed: it could not be written.
    """
    best = f"{session.folder.name}-best"
    if session.method.embedding() is not None:
        token = embedding_path(session, name)
        kept = keep(token, embedding_path(session, best).stem)
        if result == token:
            return kept
    return keep(result, best)


def _word(session: Session) -> str:
    word = PLAIN.sub("-", session.config.method.placeholder_token.lower()).strip("-.") or "token"
    return f"{word}-token" if word == session.folder.name else word


def prune_results(session: Session, keep: int | None) -> None:
    """Deletes the results of the oldest steps beyond ``keep``; None keeps all.

    A fine-tuned model is gigabytes a step: whoever limits the checkpoints means these too. The
    final result has no step in its name and stays.
    """
    if keep is None:
        return
    names = "|".join(map(re.escape, (session.folder.name, _word(session))))
    stepped = re.compile(rf"(?:{names})-(\d{{6,}})(?:\.\w+)?")
    found: dict[int, list[Path]] = {}
    for path in session.folder.path.iterdir():
        if match := stepped.fullmatch(path.name):
            found.setdefault(int(match[1]), []).append(path)
    for step in sorted(found)[:-keep]:
        for path in found[step]:
            remove(path)
    here = session.folder.path
    session.results[:] = [name for name in session.results if (here / name).exists()]


def write_model(session: Session, target: Path, metadata: dict[str, str]) -> Path:
    """Writes the whole model as ``<target>/`` (diffusers) and ``<target>.safetensors``."""
    parts, dtype = session.parts, STORED[session.config.save.precision]
    parts.family.write_folder(parts, target, dtype, metadata)
    single = target.with_name(f"{target.name}.safetensors")
    return parts.family.write_file(parts, single, dtype, metadata) or target


def captions_by_concept(session: Session) -> dict[str, list[str]]:
    """The captions of each concept's images."""
    found: dict[str, list[str]] = {}
    for entry, text in zip(session.items.entries, session.items.captioner.texts, strict=True):
        found.setdefault(session.items.concepts[entry.concept].name, []).append(text)
    return found
