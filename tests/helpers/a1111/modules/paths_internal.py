"""Where the user's data lies: below STAND_IN_DATA, else a folder that is new each time."""

from __future__ import annotations

import os
import tempfile

data_path = os.environ.get("STAND_IN_DATA") or tempfile.mkdtemp(prefix="stand-in-")
models_path = os.path.join(data_path, "models")

for name in ("Stable-diffusion", "Lora"):
    os.makedirs(os.path.join(models_path, name), exist_ok=True)
