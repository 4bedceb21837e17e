"""Writing to the disk: files and folders that are there whole or not at all.

Everything that writes uses this. Standard library only: hosts import it in their own Python.
"""

from dreambooth_core.disk.claims import tidy
from dreambooth_core.disk.system import cache_folder, discard, make_folder, sync_folder
from dreambooth_core.disk.writing import (
    copy_file,
    exchanging,
    remove,
    replacing,
    replacing_folder,
    settle,
    sha256,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "cache_folder",
    "copy_file",
    "discard",
    "exchanging",
    "make_folder",
    "remove",
    "replacing",
    "replacing_folder",
    "settle",
    "sha256",
    "sync_folder",
    "tidy",
    "write_bytes",
    "write_json",
    "write_text",
]
