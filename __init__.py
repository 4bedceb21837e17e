"""The door of ComfyUI, which imports this folder as a package under a name made from its path."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
WEB_DIRECTORY = "./web"


def _load(name, folder):
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


# Other programs that come by (test runners, type checkers) see a package without nodes.
if importlib.util.find_spec("folder_paths") is None:
    NODE_CLASS_MAPPINGS = {}
    NODE_DISPLAY_NAME_MAPPINGS = {}
else:
    _load("dreambooth_core", "dreambooth_core")
    _nodes = _load("dreambooth_comfy_nodes", "comfy_nodes")
    if _nodes.knows_v3():
        # With NODE_CLASS_MAPPINGS present the host would not call it.
        comfy_entrypoint = _nodes.comfy_entrypoint
    else:
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = _nodes.mappings()
