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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "DREAMBOOTH_DEFER"

_ASKED = ("__class__", "__dict__", "__path__")
"""What the import system asks for; the last is there for packages alone."""

_unread: dict[str, ModuleType] = {}
_lock = threading.RLock()


class Name:
    """Stands for a function or class of an unread module; whatever is done with it reads that.

    Args:
        module: where it is.
        path: its dotted name there.
        inside: names in it that can be asked for without reading the module.
    """

    def __init__(self, module: str, path: str, inside: Sequence[str] = ()) -> None:
        self._module, self._path, self._inside = module, path, tuple(inside)

    def _real(self) -> Any:
        found: Any = read(self._module)
        for part in self._path.split("."):
            found = getattr(found, part)
        return found

    def __getattr__(self, name: str) -> Any:
        if name in self._inside and self._module in _unread:
            return Name(self._module, f"{self._path}.{name}")
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        # Of a class that is not there yet there are no instances.
        return self._module not in _unread and isinstance(instance, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)


DEFERRED: Mapping[str, Mapping[str, Any]] = {
    # peft asks whether there are 4-bit layers.
    "bitsandbytes": {"nn": Name("bitsandbytes", "nn", ["Linear4bit"])},
}
"""Modules, and what stands for names in them until they are read."""


class _Unread(ModuleType):
    """A module whose code has not run yet."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in _ASKED or (name.startswith("__") and name in own):
            return object.__getattribute__(self, name)
        module = own["__name__"]
        with _lock:
            if module in _unread and name in DEFERRED[module]:
                return DEFERRED[module][name]
            return getattr(read(module), name)


def read(name: str) -> ModuleType:
    """Runs the code of a module that was put off, if it was; returns the module.

    Raises:
        ImportError: and whatever else a module raises when it is imported.
    """
    with _lock:
        parent = name.rpartition(".")[0]
        if parent in _unread:
            read(parent)
        module = _unread.pop(name, None)
        if module is None:
            return importlib.import_module(name)
        loader = module.__loader__
        assert isinstance(loader, _Deferring)
        module.__class__ = ModuleType
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = loader.real
        try:
            loader.real.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module


class _Deferring(Loader):
    """Puts a module in place without running its code."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _unread[module.__name__] = module
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
    """Finds what is to be put off, and reads a package before any other module of it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in DEFERRED:
            spec = _found_by_others(self, name, path, target)
            if spec is None or spec.loader is None:
                return spec
            spec.loader = _Deferring(spec.loader)
            return spec
        for package in [package for package in _unread if name.startswith(f"{package}.")]:
            read(package)
        present = sys.modules.get(name)
        return None if present is None else ModuleSpec(name, _Present(present))


def _found_by_others(
    finder: MetaPathFinder, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    others: list[Callable[..., ModuleSpec | None]] = [
        other.find_spec for other in sys.meta_path if other is not finder
    ]
    specs = (find(name, path, target) for find in others)
    return next((spec for spec in specs if spec is not None), None)


_FINDER = _Finder()


def defer() -> None:
    """From now on, :data:`DEFERRED` modules that are not imported yet wait until they are used."""
    if os.environ.get(VARIABLE) != "0" and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def undo() -> None:
    """Imports are what they were; what was put off is still read when it is used."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports, in the engine's own processes: the garbage collector stays out of the way.

    It would look, time and again, at ever more objects that all stay. Afterwards it leaves these
    alone for good. Nothing happens where :func:`defer` was not called.
    """
    if _FINDER not in sys.meta_path or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
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
