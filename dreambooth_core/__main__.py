"""``python -m dreambooth_core`` is the ``dreambooth`` command."""

import sys

from dreambooth_core.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
