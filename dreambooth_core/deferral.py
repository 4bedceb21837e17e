"""What libraries import at their top and few runs use, read when it is touched.

``import diffusers`` and ``import peft`` read torch's compiler, the larger parts of scipy and
bitsandbytes: half of the seconds before a first step. In the engine's own processes these are put
in their places unread, and read as soon as anything is asked of them but what :data:`DEFERRED`
answers by itself.

Never in a host's process: :func:`defer` is called by the command line and by the worker.
``DREAMBOOTH_DEFER=0`` switches it off.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from dreambooth_core.walked import keep_walk

VARIABLE = "DREAMBOOTH_DEFER"

_lock = threading.RLock()


@dataclass(frozen=True)
class Deferred:
    """A module that is put off."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    """What can be asked of it unread."""
    alone: frozenset[str] = frozenset()
    """Modules in it that are read without it."""
    read: Callable[[ModuleType], None] = lambda module: None
    """Called as soon as it is read: makes up for what was answered."""


class _Layers:
    """``bitsandbytes.nn``, unread. At import peft asks whether there are 4-bit layers; whatever
    else is asked of it, such as 8-bit ones, reads the package."""

    class Linear4bit:
        """Of a class that is not there yet there are no instances."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_read(sys.modules["bitsandbytes"]).nn, name)


class _Compiler:
    """What ``torch._dynamo`` is asked for where nothing is compiled: decorators, which mean
    something only to what it compiles."""

    MARKS = ("allow_in_graph", "assume_constant_result")
    """Those that give back the function that they are given."""

    def __init__(self) -> None:
        self.marked: list[tuple[str, Any]] = []
        self.disabled: WeakKeyDictionary[Any, Callable[[ModuleType], Any]] = WeakKeyDictionary()

    def mark(self, name: str, fn: Any) -> Any:
        """Notes it; the compiler is told when it is there."""
        self.marked.append((name, fn))
        return fn

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """The function itself until the compiler is there, then what that makes of it."""
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **options)
        if not inspect.isroutine(fn):
            real = _read(sys.modules["torch._dynamo"]).disable
            return real(fn, recursive, **options)
        meant: list[Callable[..., Any]] = [fn]

        @functools.wraps(fn)
        def late(*args: Any, **values: Any) -> Any:
            return meant[0](*args, **values)

        def tell(module: ModuleType) -> Any:
            meant[0] = module.disable(fn, recursive, **options)
            return meant[0]

        self.disabled[late] = tell
        return late

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Ends a graph where one is recorded: none is. Each step of an optimizer does this."""

    def read(self, module: ModuleType) -> None:
        """Tells it what it was not there for."""
        for name, fn in self.marked:
            getattr(module, name)(fn)
        for late, tell in list(self.disabled.items()):
            late.__dict__.update(vars(tell(module)))
        self.marked.clear()
        self.disabled.clear()


def _late(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is read when it is called."""

    def call(*args: Any, **values: Any) -> Any:
        return getattr(_read(sys.modules[module]), name)(*args, **values)

    return call


def _symbolic(name: str) -> Callable[..., bool]:
    """A question about a truth that may be a symbol. Only what compiles has symbols; a plain truth
    is its own answer."""
    real = _late("torch.fx.experimental.symbolic_shapes", name)

    def answer(truth: Any, *args: Any, **values: Any) -> bool:
        return truth if type(truth) is bool else real(truth, *args, **values)

    return answer


def _equal_sizes(one: Any, other: Any) -> Any:
    """Whether two shapes are the same, which gradients are asked."""
    plain = all(isinstance(each, tuple) for each in (one, other))
    if plain and all(type(number) is int for number in (*one, *other)):
        return tuple(one) == tuple(other)
    return _late("torch.fx.experimental.symbolic_shapes", "sym_eq")(one, other)


class _NoTruth(Exception):
    """Stands in for an error that only symbols raise, where modules name it to catch it."""

    @classmethod
    def give_way(cls, module: ModuleType) -> None:
        """Puts the real one into the modules that took this."""
        for taker in list(sys.modules.values()):
            if getattr(taker, "__dict__", {}).get(cls.__name__) is cls:
                setattr(taker, cls.__name__, getattr(module, cls.__name__))


_NoTruth.__name__ = "GuardOnDataDependentSymNode"

_compiler = _Compiler()

QUESTIONS = (
    "expect_true",
    "guard_bool",
    "guard_or_false",
    "guard_or_true",
    "statically_known_true",
)

DEFERRED: dict[str, Deferred] = {
    "bitsandbytes": Deferred({"nn": _Layers()}),
    "torch._dynamo": Deferred(
        {name: functools.partial(_compiler.mark, name) for name in _compiler.MARKS}
        | {"disable": _compiler.disable, "graph_break": _compiler.graph_break},
        alone=frozenset({"torch._dynamo._trace_wrapped_higher_order_op"}),  # of transformers
        read=_compiler.read,
    ),
    # Which reads sympy.
    "torch.fx.experimental.symbolic_shapes": Deferred(
        {name: _symbolic(name) for name in QUESTIONS}
        | {"sym_eq": _equal_sizes}
        | {_NoTruth.__name__: _NoTruth},
        read=_NoTruth.give_way,
    ),
    # Matching of detected objects in transformers, noise schedules in diffusers.
    "scipy.optimize": Deferred(
        {"linear_sum_assignment": _late("scipy.optimize", "linear_sum_assignment")}
    ),
    "scipy.integrate": Deferred(),
    "scipy.stats": Deferred(),
    "trio": Deferred(),  # one of two ways to wait for the network
}
"""What is put off, by name."""

SHORTENED: dict[str, Callable[[ModuleType], None]] = {
    "transformers.utils.import_utils": keep_walk,
}
"""Modules that do at every import what need be done once; each is changed when it was read."""


class _Unread(ModuleType):
    """A module, its code not run yet. What an import asks for is there already."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # every import asks; a package has it already
            raise AttributeError(name)
        with _lock:
            if type(self) is _Unread:
                answers = DEFERRED[self.__name__].answers
                if name in answers:
                    return answers[name]
            return getattr(_read(self), name)


def _read(module: Any) -> Any:
    """Runs the module's code, if it was put off; returns the module.

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
            DEFERRED[unread.__name__].read(unread)
        return module


class _Deferring(Loader):
    """Puts a module in place without running its code."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Unread


class _Shortening(_Deferring):
    """Reads a module and changes it."""

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.real
        self.real.exec_module(module)
        SHORTENED[module.__name__](module)


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
        if name in DEFERRED or name in SHORTENED:
            found = (o.find_spec(name, path, target) for o in sys.meta_path if o is not self)
            spec = next((each for each in found if each is not None), None)
            if spec is not None and spec.loader is not None:
                kind = _Deferring if name in DEFERRED else _Shortening
                spec.loader = kind(spec.loader)
            return spec
        package = next((each for each in DEFERRED if name.startswith(f"{each}.")), None)
        if package is None or name in DEFERRED[package].alone:
            return None
        _read(sys.modules[package])
        present = sys.modules.get(name)
        return None if present is None else ModuleSpec(name, _Present(present))


_FINDER = _Finder()


def defer() -> None:
    """From now on what is in :data:`DEFERRED`, and not imported yet, waits until it is used."""
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
