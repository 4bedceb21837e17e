"""Writes PyTorch's zip files as every host reads them."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from dreambooth_core.disk import replacing

NEEDED = re.compile(r"[^/]+/(data\.pkl|data/\d+|version)")
"""What A1111's check of pickles lets through (safe.py). Current PyTorch adds entries of its own
(``.format_version``, ``byteorder`` …), which nothing needs, and A1111 refuses the whole file."""

ALIGNMENT = 64
"""Bytes: tensors begin at multiples of it, as PyTorch writes them, so that they can be mapped."""

_LOCAL_HEADER = 30
"""Bytes of a zip entry's header before its name."""


def write_archive(path: str | Path, value: Any) -> None:
    """Writes ``value`` as ``torch.save`` would, but for the entries that hosts refuse.

    Raises:
        SaveFailed: it could not be written; the old file is intact.
    """
    with replacing(path) as file, tempfile.TemporaryFile(dir=Path(path).parent) as whole:
        torch.save(value, whole)
        whole.seek(0)
        _copy_needed(whole, file)


def _copy_needed(whole: IO[bytes], file: BinaryIO) -> None:
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as target,
    ):
        for entry in source.infolist():
            if not NEEDED.fullmatch(entry.filename):
                continue
            made = zipfile.ZipInfo(entry.filename)
            made.file_size = entry.file_size
            begin = file.tell() + _LOCAL_HEADER + len(entry.filename.encode()) + 4
            padding = -begin % ALIGNMENT
            made.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            with source.open(entry) as reading, target.open(made, "w") as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
