"""Heavy modules that libraries import at their top and a run rarely uses, read when touched.

``import diffusers`` alone reads torch's compiler, bitsandbytes (which reads the compiler's back
end) and, where they are installed, scipy and trio: half of the seconds before a first step. In the
engine's own processes such a module is put in its place unread, and read as soon as anything is
asked of it. Names that libraries take from one at once (``from scipy.optimize import …``), or
decorate and compare with, are stood in for until then.

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
from pathlib import Path
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


class Plain(Name):
    """Stands for a function of sizes and truth values that may be symbolic. For plain ones it is
    simple, and answered here; anything else reads the module."""

    def __init__(self, module: str, path: str, answer: Callable[..., Any]) -> None:
        super().__init__(module, path)
        self._answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and all(map(_is_plain, args)):
            return self._answer(*args)
        return super().__call__(*args, **kwargs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(type(item) is int for item in value)
    return type(value) in (bool, int)


def _same(value: Any) -> Any:
    return value


_allowed: list[Any] = []
"""What was marked with ``allow_in_graph`` before the compiler was read."""


def _allow_in_graph(function: Any) -> Any:
    _allowed.append(function)
    return function


def _assume_constant_result(function: Any) -> Any:
    function._dynamo_marked_constant = True
    return function


def _disable(function: Any = None, *_: Any, **__: Any) -> Any:
    """Nothing is compiled before the compiler is read, so there is nothing to switch off."""
    return (lambda found: found) if function is None else function


def _graph_break(*_: Any, **__: Any) -> None:
    """Means something in compiled code alone."""


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "expect_true": _same,
    "guard_int": _same,
    "guard_or_false": _same,
    "guard_or_true": _same,
    "guard_size_oblivious": _same,
    "guarding_hint_or_throw": _same,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": _same,
    "sym_and": lambda *values: all(values),
    "sym_eq": lambda one, other: one == other,
    "sym_or": lambda *values: any(values),
}
"""What the functions of torch's symbolic shapes say to plain values."""

_DYNAMO = "torch._dynamo"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_WRAPPED = f"{_DYNAMO}._trace_wrapped_higher_order_op"

DEFERRED: Mapping[str, Mapping[str, Any]] = {
    _DYNAMO: {
        "allow_in_graph": _allow_in_graph,
        "assume_constant_result": _assume_constant_result,
        "disable": _disable,
        "eval_frame": Name(_DYNAMO, "eval_frame", ["OptimizedModule"]),
        "graph_break": _graph_break,
    },
    _WRAPPED: {"TransformGetItemToIndex": Name(_WRAPPED, "TransformGetItemToIndex")},
    "bitsandbytes": {"nn": Name("bitsandbytes", "nn", ["Linear4bit"])},
    _SHAPES: {
        "GuardOnDataDependentSymNode": type("GuardOnDataDependentSymNode", (Exception,), {}),
        **{name: Plain(_SHAPES, name, answer) for name, answer in _ANSWERS.items()},
    },
    "scipy.integrate": {},
    "scipy.optimize": {
        "linear_sum_assignment": Name("scipy.optimize", "linear_sum_assignment"),
    },
    "scipy.stats": {},
    "sympy": {"Basic": Name("sympy", "Basic")},
    "trio": {},
}
"""Modules, and what stands for names in them."""


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
        _replace_stand_ins(module)
        if name == _DYNAMO:
            for function in _allowed:
                module.allow_in_graph(function)
        return module


def _replace_stand_ins(module: ModuleType) -> None:
    """Gives the modules that took a stand-in from this one the real thing."""
    own = vars(module)
    real = {
        id(stand_in): own[name]
        for name, stand_in in DEFERRED[module.__name__].items()
        if name in own
    }
    for other in list(sys.modules.values()):
        names = getattr(other, "__dict__", {})
        for name in [name for name, value in list(names.items()) if id(value) in real]:
            names[name] = real[id(names[name])]


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
        _read_names_once()
        for library, names in LIBRARIES.items():
            module = importlib.import_module(library)
            for name in names:
                getattr(module, name)


def _read_names_once() -> None:
    """transformers reads its thousand model files for the names in them, and keeps the answer by
    the path it was asked for: once by the folder, and again by the file in it."""
    utils = importlib.import_module("transformers.utils.import_utils")
    read_names: Any = getattr(utils, "create_import_structure_from_path", None)
    if hasattr(read_names, "cache_info"):

        def by_folder(path: Any) -> Any:
            place = Path(path)
            return read_names(place.parent if place.name == "__init__.py" else place)

        utils.create_import_structure_from_path = by_folder  # type: ignore[attr-defined]
