"""The engine's own Python environment: where it is, whether it is ready, how it is built.

Standard library only, and no imports between this package and the rest of the engine but its
errors and its way to write files: install.py runs it under whatever Python calls it, and the
hosts ask it how to start a worker::

    layout = locate(root)               # the clone's root
    state = status(layout)              # ready, or what is missing
    subprocess.Popen([*layout.command(), "-m", "dreambooth_core", "train", …],
                     env=clean_environment())
"""

from __future__ import annotations

from dreambooth_core.environment.layout import Layout, locate
from dreambooth_core.environment.processes import clean_environment
from dreambooth_core.environment.recipe import Status, status

__all__ = ["Layout", "Status", "clean_environment", "locate", "status"]
