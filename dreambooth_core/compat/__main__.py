"""``python -m dreambooth_core.compat NAME …``: what ``accelerate launch -m`` starts."""

from __future__ import annotations

import sys

from dreambooth_core.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["compat", *sys.argv[1:]]))
