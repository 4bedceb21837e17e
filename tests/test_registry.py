"""Records of our own and of other packages, by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dreambooth_core import registry
from dreambooth_core.errors import UserError
from dreambooth_core.registry import Registry


@dataclass(frozen=True)
class Thing:
    name: str


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Thing]]:
    """A registry with ``one`` of its own and whatever packages in ``tmp_path`` bring."""
    package(tmp_path, "strange", "from tests.test_registry import Thing\nTWO = Thing('two')\n")
    package(tmp_path, "broken", "raise RuntimeError('no such card')\n")
    package(tmp_path, "liar", "from tests.test_registry import Thing\nX = Thing('y')\n")
    entries(tmp_path, two="strange:TWO", three="broken:X", four="liar:X", one="strange:TWO")
    made: Registry[Thing] = Registry("thing", where="some.thing", group="dreambooth.things")
    made.add(Thing("one"))
    yield made
    for name in ("strange", "broken", "liar"):
        sys.modules.pop(name, None)


def package(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def entries(folder: Path, **objects: str) -> None:
    """An installed package that brings nothing but entry points."""
    info = folder / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in objects.items()]
    (info / "entry_points.txt").write_text("\n".join(["[dreambooth.things]", *lines, ""]))


@pytest.fixture
def installed(tmp_path: Path, things: Registry[Thing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


def test_a_record_of_another_package(things: Registry[Thing], installed: None) -> None:
    assert list(things) == ["one", "two", "three", "four"]
    assert "two" in things
    assert things["two"].name == "two"
    assert things["two"] is things["two"]


def test_ours_is_not_replaced(things: Registry[Thing], installed: None) -> None:
    assert things["one"].name == "one"


def test_a_package_that_is_broken_is_named(things: Registry[Thing], installed: None) -> None:
    with pytest.raises(UserError, match=r"some.thing: .*'three' cannot be loaded.*no such card"):
        things["three"]
    with pytest.raises(UserError, match=r"liar:X calls itself 'y'"):
        things["four"]


def test_a_broken_package_costs_nobody_else_anything(
    things: Registry[Thing], installed: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert [thing.name for thing in things.working()] == ["one", "two"]
    assert len(caplog.messages) == 3  # a name that is taken, and once each of the broken ones


def test_an_unknown_name_gets_the_nearest(things: Registry[Thing]) -> None:
    with pytest.raises(UserError, match=r"some.thing: thing 'ones' is not known. Did you mean one"):
        things["ones"]


def test_a_host_reads_names_without_importing(
    tmp_path: Path, things: Registry[Thing], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(things) == ["one"]
    monkeypatch.setattr(registry, "engine_packages", lambda: [str(tmp_path)])
    things.forget()
    assert list(things) == ["one", "two", "three", "four"]
    assert "strange" not in sys.modules


def test_the_engine_s_packages_are_those_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENV", sys.prefix)
    assert registry.engine_packages() == []  # it is this one
    inside = "Lib/site-packages" if sys.platform == "win32" else "lib/python3.11/site-packages"
    (tmp_path / inside).mkdir(parents=True)
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("DREAMBOOTH_ENV", str(tmp_path))
    found = [str((tmp_path / name).resolve()) for name in (inside, "site")]
    assert registry.engine_packages() == found
