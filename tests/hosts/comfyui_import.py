"""Runs inside ComfyUI's own Python: how many CPU seconds importing the pack takes there."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import comfy.cli_args  # type: ignore[import-not-found]
import utils.install_util  # noqa: F401 (before another package of this name)

comfy.cli_args.args.cpu = True

import comfy.samplers  # type: ignore[import-not-found]  # noqa: E402
import comfy_api.latest  # type: ignore[import-not-found]  # noqa: E402, F401
import nodes  # type: ignore[import-not-found]  # noqa: E402, F401

door = Path.cwd() / "custom_nodes" / "dreambooth" / "__init__.py"
started = time.process_time()
spec = importlib.util.spec_from_file_location("pack", door)
assert spec is not None and spec.loader is not None
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
found = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
for each in found:
    each.GET_SCHEMA()
print(time.process_time() - started)
