"""The door of AUTOMATIC1111's WebUI and Forge: they run this file by path, and again on Reload UI.

What it needs is loaded by file and under names of its own. The clone's folder stays off the
search path, where its `tests` and `tools` would get into other extensions' way.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(name, folder):
    """The package in ROOT/folder under the given name, imported once."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    place = ROOT / folder
    spec = importlib.util.spec_from_file_location(
        name, place / "__init__.py", submodule_search_locations=[str(place)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[name]
        raise
    return package


load("dreambooth_core", "dreambooth_core")
# Reload UI forgets all callbacks but no module: they are registered here, not on import.
load("dreambooth_extension", "extension").register(ROOT)
