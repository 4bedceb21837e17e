"""ComfyUI's nodes. The only package that imports the host's `comfy`, `folder_paths` or `nodes`."""

from __future__ import annotations

import logging

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

logging.getLogger("dreambooth").info(
    "dreambooth: the training engine works from the command line today (see README.md in its "
    "folder); its nodes are coming"
)
