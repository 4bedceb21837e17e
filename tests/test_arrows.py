"""Imports run one way: no module meets itself again, and no package reaches up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dreambooth_core"

LEVELS = (
    {"commands", "compat", "diagnosis", "worker", "process", "warm", "__main__"},
    {"trainer"},
    {"options", "memory", "methods", "families", "data", "objective", "optim"}
    | {"evaluation", "vision"},
    {"formats"},
    {"jobs", "hosting", "config", "registry"},
    {"errors", "disk", "bases", "attention", "environment", "devices", "randomness"}
    | {"deferral", "walked", "quiet", "assets"},
)
"""The rooms of the engine, the uppermost first. Each imports from its own level and from below."""

EXCEPTIONS = {
    ("formats", "families.names"): "what a family calls its layers stands with the family, in "
    "tables without code, and whoever reads or writes files asks their registry",
}
"""Arrows that run upwards, and why."""

Graph = dict[str, set[str]]


def modules(package: str = PACKAGE) -> dict[str, Path]:
    """All modules of a package, named from within it; ``""`` is the package itself."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST, here: str = "") -> Iterator[str]:
    """What a piece of code imports, in functions too; not what only a type checker reads.

    ``here``: the package that it stands in, for imports that begin with a dot."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imported(other, here)
        elif isinstance(child, ast.ImportFrom):
            above = here.split(".")[: 1 - child.level or None] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            yield from (f"{base}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        else:
            yield from imported(child, here)


def graph_of(package: str) -> Graph:
    """The modules of a package that each one imports."""
    paths = modules(package)

    def module(name: str) -> str | None:
        inside = name.removeprefix(package).removeprefix(".")
        if not f"{name}.".startswith(f"{package}."):
            return None
        return inside if inside in paths else inside.rpartition(".")[0]

    found: Graph = {}
    for name, path in paths.items():
        own = name if path.name == "__init__.py" else name.rpartition(".")[0]
        here = f"{package}.{own}".rstrip(".")
        names = map(module, imported(ast.parse(path.read_text(encoding="utf-8")), here))
        found[name] = {each for each in names if each is not None} - {name}
    return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    """The modules of the engine that each one imports."""
    return graph_of(PACKAGE)


def circle(graph: Graph) -> list[str]:
    """A circle of imports, if there is any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upwards(graph: Graph) -> set[tuple[str, str]]:
    """Imports of a higher level, but for the exceptions."""
    levels = {room: height for height, rooms in enumerate(reversed(LEVELS)) for room in rooms}
    homeless = {name.partition(".")[0] for name in graph} - levels.keys() - {""}
    assert not homeless, f"on which level are {homeless}?"
    found = set()
    for name, others in graph.items():
        for other in others:
            room, there = (each.partition(".")[0] for each in (name, other))
            if not room or not there or levels[room] >= levels[there]:
                continue
            if not any(room == own and f"{other}.".startswith(f"{up}.") for own, up in EXCEPTIONS):
                found.add((name, other))
    return found


def test_no_module_meets_itself_again(graph: Graph) -> None:
    assert graph["trainer.run"] >= {"trainer.train", "errors"}
    assert circle(graph) == []
    assert circle({**graph, "errors": {"trainer.run"}})


@pytest.mark.parametrize(
    ("package", "module", "other"),
    [("comfy_nodes", "training", "engine"), ("extension", "service.runs", "service.results")],
)
def test_no_module_of_a_host_meets_itself_again(package: str, module: str, other: str) -> None:
    graph = graph_of(package)
    del graph[""]  # what a package shows of its modules is no circle
    assert other in graph[module]
    assert circle(graph) == []


def test_no_room_reaches_up(graph: Graph) -> None:
    assert upwards(graph) == set()
    lifted = {**graph, "memory.needs": graph["memory.needs"] | {"trainer.decide"}}
    assert upwards(lifted) == {("memory.needs", "trainer.decide")}


def test_every_exception_is_needed(graph: Graph) -> None:
    for room, up in EXCEPTIONS:
        assert any(
            name.partition(".")[0] == room and f"{other}.".startswith(f"{up}.")
            for name, others in graph.items()
            for other in others
        ), (room, up)


def test_a_reader_of_types_alone_is_no_arrow() -> None:
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    import b"
    )
    assert list(imported(ast.parse(code))) == ["typing.TYPE_CHECKING", "b"]
