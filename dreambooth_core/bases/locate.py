"""From what the user wrote to a file or folder on this machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from dreambooth_core.bases.embedded import EMBEDDED, whole_folder
from dreambooth_core.disk import settle
from dreambooth_core.errors import UserError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", re.ASCII)


def locate(model: str, *, revision: str | None = None, variant: str | None = None) -> Path:
    """A path to the base: a folder in diffusers layout or a single file.

    Args:
        model: a path, a hub id, or the name of an embedded base.
        revision: branch, tag or commit of a hub id.
        variant: file variant of a hub id, such as ``fp16``.

    Raises:
        UserError: nothing is there, or the hub cannot be reached.
    """
    path = _existing(model)
    if path is not None:
        return path
    if model in EMBEDDED:
        return whole_folder(model)
    if not _HUB_ID.match(model):
        raise UserError(
            "there is no such file or folder",
            where=f"base.model: {model}",
            do="Give a diffusers folder, a .safetensors or .ckpt file, a hub id or "
            f"{' or '.join(EMBEDDED)}.",
        )
    return _download(model, revision, variant)


def commit_of(path: Path) -> str | None:
    """The commit of a snapshot in the hub's cache (``…/snapshots/<commit>``); else None."""
    known = path.parent.name == "snapshots" and is_commit(path.name)
    return path.name if known else None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which always means the same files."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def is_on_hub(model: str) -> bool:
    """Whether a base is named by a hub id alone. Raises ``UserError`` where no file can be."""
    return model not in EMBEDDED and _HUB_ID.match(model) is not None and _existing(model) is None


def hub_id(model: str) -> str | None:
    """The name on the hub of a base as the user wrote it; None where it has none.

    Known besides an id itself: a snapshot in the hub's cache, and a folder whose index says where
    it came from.
    """
    path = Path(os.path.expanduser(model))
    if is_on_hub(model):
        return model
    for part in path.parts:
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        named = str(index.get("_name_or_path", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return named if _HUB_ID.match(named) and not os.path.exists(named) else None


def _existing(model: str) -> Path | None:
    """The path that a text names, if something is there.

    Raises:
        UserError: no file can have this name.
    """
    if not model.strip():
        raise UserError("no base is named", where="base.model")
    try:
        path = Path(model).expanduser()
        settle(path)
        return path.resolve() if os.path.lexists(path) else None
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long, with a null in it, or the home of nobody.
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"this is not a path ({reason})", where=f"base.model: {model[:200]}"
        ) from error


def _download(model: str, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    suffix = f".{variant}" if variant else ""
    patterns = ["*.json", "*.txt", f"*/*{suffix}.safetensors", "*tokenizer*/*"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise UserError(
            "the hub has no such model, or it is private",
            where=f"base.model: {model}",
            do="Check the spelling; for a private or gated model set HF_TOKEN.",
        ) from error
    except HFValidationError as error:
        raise UserError(
            "this is neither a path nor a hub id", where=f"base.model: {model}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise UserError(
            "the hub cannot be reached and the model is not in its cache",
            where=f"base.model: {model}" + (f", revision {revision}" if revision else ""),
            do="Check the network (HF_ENDPOINT chooses a mirror), or give a path.",
        ) from error
