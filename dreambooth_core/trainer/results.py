"""Writing what was learned, in the layout that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.trainer.metadata import result_metadata
from dreambooth_core.trainer.precision import STORED

if TYPE_CHECKING:
    from dreambooth_core.trainer.session import Session


def write_result(session: Session, name: str) -> Path:
    """Writes the present state of what is trained into the run's folder.

    Returns:
        The file, or for peft's layout the folder.

    Raises:
        SaveFailed: it could not be written.
    """
    config = session.config
    adapter = session.method.adapter()
    size = session.items.entries[0].size
    metadata = result_metadata(
        config,
        session.parts,
        name=name,
        step=session.step,
        epoch=session.plan.epoch_of(max(session.step - 1, 0)) + 1,
        captions=captions_by_concept(session),
        size=size,
    )
    adapter.metadata.update(metadata)
    ending = "" if config.save.layout == "peft" else ".safetensors"
    path = session.folder.path / f"{name}{ending}"
    return write_adapter(
        adapter, path, config.save.layout, dtype=STORED[config.save.precision]
    )


def captions_by_concept(session: Session) -> dict[str, list[str]]:
    """The captions of each concept's pictures."""
    found: dict[str, list[str]] = {}
    for entry, text in zip(session.items.entries, session.items.captioner.texts, strict=True):
        found.setdefault(session.items.concepts[entry.concept].name, []).append(text)
    return found
