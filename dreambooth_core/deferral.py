"""bitsandbytes, which libraries import at their top and few runs use, read when it is touched.

``import diffusers`` and ``import peft`` read bitsandbytes, and that reads the back end of torch's
compiler: a third of the seconds before a first step. In the engine's own processes it is put in
its place unread, and read as soon as anything is asked of it.

Never in a host's process: :func:`defer` is called by the command line and by the worker.
``DREAMBOOTH_DEFER=0`` switches it off.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "DREAMBOOTH_DEFER"

PACKAGE = "bitsandbytes"

_lock = threading.RLock()


class _Layers:
    """``bitsandbytes.nn``, unread. At import peft asks whether there are 4-bit layers; whatever
    else is asked of it, such as 8-bit ones, reads the package."""

    class Linear4bit:
        """Of a class that is not there yet there are no instances."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_read(sys.modules[PACKAGE]).nn, name)


ANSWERS: Mapping[str, Any] = {"nn": _Layers()}
"""What can be asked of it unread."""


class _Unread(ModuleType):
    """The package, its code not run yet. What an import asks for is there already."""

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if name in ANSWERS and type(self) is _Unread:
                return ANSWERS[name]
            return getattr(_read(self), name)


def _read(module: Any) -> Any:
    """Runs the package's code, if it was put off; returns the package.

    Raises:
        ImportError: and whatever else a module raises when it is imported.
    """
    with _lock:
        if type(module) is _Unread:
            unread: Any = module
            real = unread.__loader__.real
            unread.__class__ = ModuleType
            unread.__spec__.loader = unread.__loader__ = real
            try:
                real.exec_module(unread)
            except BaseException:
                sys.modules.pop(unread.__name__, None)
                raise
        return module


class _Deferring(Loader):
    """Puts a module in place without running its code."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Unread


class _Present(Loader):
    """Gives the module that is there already: reading its package has imported it."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__
        module.__spec__ = None  # or the import system would take it and run the code again

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    """Finds what is to be put off, and reads it before any other module of it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == PACKAGE:
            found = (o.find_spec(name, path, target) for o in sys.meta_path if o is not self)
            spec = next((each for each in found if each is not None), None)
            if spec is not None and spec.loader is not None:
                spec.loader = _Deferring(spec.loader)
            return spec
        if not name.startswith(f"{PACKAGE}."):
            return None
        _read(sys.modules[PACKAGE])
        present = sys.modules.get(name)
        return None if present is None else ModuleSpec(name, _Present(present))


_FINDER = _Finder()


def defer() -> None:
    """From now on :data:`PACKAGE`, if it is not imported yet, waits until it is used."""
    if os.environ.get(VARIABLE) != "0" and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports, in the engine's own processes: the garbage collector stays out of the way.

    It would look, time and again, at ever more objects that all stay. Afterwards it leaves these
    alone for good. Nothing happens where :func:`defer` was not called, nor, afterwards, where all
    was imported before: what else is in memory may be let go.
    """
    known = len(sys.modules)
    if _FINDER not in sys.meta_path or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        gc.enable()


LIBRARIES = {
    "diffusers": ("AutoencoderKL", "UNet2DConditionModel"),
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
    "peft": (),
}
"""What every run needs; these libraries import what they hold when it is asked for."""


def load_libraries() -> None:
    """Imports :data:`LIBRARIES` at once.

    Raises:
        ImportError: one is not there or does not work.
    """
    with importing():
        for library, names in LIBRARIES.items():
            module = importlib.import_module(library)
            for name in names:
                getattr(module, name)
