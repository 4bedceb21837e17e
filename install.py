"""Makes the engine's own Python environment; ``python install.py --help`` says more.

Runs under whatever Python calls it, with the standard library alone, and changes no package of
it. This file is only the door, and keeps to a syntax that old Pythons can read, so that they get
a line to act on; the work is done in dreambooth_core/environment.
"""

from __future__ import print_function

import os
import sys

OLDEST, NEWEST = (3, 10), (3, 13)


def main():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return under_another_python()
    from importlib.util import module_from_spec, spec_from_file_location

    # By file, not by search path: the clone's folder, with its tests and tools, stays off it,
    # and Pythons that do not put a script's folder on it (the embeddable one) work too.
    root = os.path.dirname(os.path.abspath(__file__))
    folder = os.path.join(root, "dreambooth_core")
    spec = spec_from_file_location(
        "dreambooth_core",
        os.path.join(folder, "__init__.py"),
        submodule_search_locations=[folder],
    )
    package = module_from_spec(spec)
    sys.modules["dreambooth_core"] = package
    spec.loader.exec_module(package)

    from pathlib import Path

    from dreambooth_core.environment.cli import main as run

    return run(Path(root), sys.argv[1:])


def under_another_python():
    """Hands over to a Python on the search path that can do it, or says what is needed."""
    import subprocess

    for minor in (11, 12, 13, 10):
        name = "python3.%d" % minor
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            program = os.path.join(folder, name)
            if os.path.isfile(program) and os.access(program, os.X_OK) and works(program):
                return subprocess.call([program, os.path.abspath(__file__)] + sys.argv[1:])
    print(
        "install.py: %s is Python %d.%d, and 3.10 to 3.13 is needed. Install Python 3.11 and run: "
        "python3.11 install.py" % (sys.executable, sys.version_info[0], sys.version_info[1]),
        file=sys.stderr,
    )
    return 2


def works(program):
    """Version managers put names on the search path that lead nowhere."""
    import subprocess

    with open(os.devnull, "w") as nothing:
        return subprocess.call([program, "-c", ""], stdout=nothing, stderr=nothing) == 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to clean up
        sys.exit(130)
