"""An engine that teaches Stable Diffusion something new, whatever the program around it.

Importing this package (and ``dreambooth_core.jobs``, ``dreambooth_core.config``) needs the
standard library alone: hosts import it in their own Python, the heavy parts run in a worker.
"""

__version__ = "0.1.0"
