"""Where the environment is, whether it is ready, and how it is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreambooth_core.environment import clean_environment, locate, recipe, status
from dreambooth_core.environment.layout import Layout, Marker
from dreambooth_core.environment.transaction import held, recover, replacing
from dreambooth_core.errors import DreamBoothError, UserError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An environment that is not there yet."""
    (tmp_path / "locks").mkdir()
    for name in ("py310.txt", "py311.txt"):
        (tmp_path / "locks" / name).write_text("pip==26.3\nrich==15.0.0 ; x\n", encoding="utf-8")
    return locate(tmp_path, {})


def fake(layout: Layout, home: Path, name: str, whole: bool = True) -> None:
    """An environment without Python in it, as far as its marker goes."""
    home.mkdir(parents=True, exist_ok=True)
    (home / name).touch()
    python = home / layout.venv_python.relative_to(layout.home)
    python.parent.mkdir(parents=True, exist_ok=True)
    python.touch()
    known = Marker(whole, "venv", os.__file__, str(layout.home), "3.11", asked="cpu")
    known.packages = recipe.packages_fingerprint(recipe.recipe_for(layout, (3, 11)), "cpu", {})
    known.project = recipe.project_fingerprint(layout)
    Layout(layout.root, home).note(known)


def names(layout: Layout) -> list[str]:
    """What is in the environment's folder, beside its marker and Python."""
    usual = {layout.marker.name, "bin", "Scripts"}
    return sorted(p.name for p in layout.home.iterdir() if p.name not in usual)


def test_dreambooth_env_says_where(tmp_path: Path) -> None:
    assert locate(tmp_path, {}).home == tmp_path / ".venv"
    assert locate(tmp_path, {"DREAMBOOTH_ENV": "deep/er"}).home == tmp_path / "deep" / "er"
    elsewhere = str(tmp_path / "else where")
    assert locate(tmp_path / "clone", {"DREAMBOOTH_ENV": elsewhere}).home == Path(elsewhere)


def test_without_an_environment_there_is_no_command(layout: Layout) -> None:
    with pytest.raises(FileNotFoundError):
        layout.command()


def test_ready_until_something_changes(layout: Layout) -> None:
    assert status(layout).reason == "there is none yet"
    fake(layout, layout.home, "one")
    assert status(layout, environ={}) == recipe.Status(True, "")
    assert not status(layout, "cu130", environ={}).ready
    assert not status(layout, environ={"TORCH_INDEX_URL": "https://x"}).ready

    (layout.root / "pyproject.toml").write_text("# new", encoding="utf-8")
    assert status(layout, environ={}) == recipe.Status(True, "", project_ready=False)

    lock = layout.root / "locks" / "py311.txt"
    text = lock.read_text(encoding="utf-8")
    more_wheels = text.replace("pip==26.3", f"pip==26.3 \\\n    --hash=sha256:{'0' * 64}")
    lock.write_text(more_wheels, encoding="utf-8")
    assert status(layout, environ={}).ready, "a wheel for another system is no reason to rebuild"
    lock.write_text(text + "six==1\n", encoding="utf-8")
    assert "changed" in status(layout, environ={}).reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"whole": False}, "did not end"),
        ({"home": "/elsewhere"}, "moved"),
        ({"base": "/gone/python3"}, "Python that it was made with is gone"),
    ],
)
def test_why_it_is_not_ready(layout: Layout, change: dict[str, object], reason: str) -> None:
    fake(layout, layout.home, "one")
    known = layout.known()
    assert known
    for name, value in change.items():
        setattr(known, name, value)
    layout.note(known)
    assert reason in status(layout, environ={}).reason


def test_a_marker_that_cannot_be_read_is_none(layout: Layout) -> None:
    layout.home.mkdir()
    for text in ("", "[]", '{"whole": true}', "{"):
        layout.marker.write_text(text, encoding="utf-8")
        assert layout.known() is None


def test_pins_and_sizes_come_from_the_lock(layout: Layout) -> None:
    known = recipe.recipe_for(layout, (3, 12))
    assert known.lock.name == "py311.txt" and recipe.recipe_for(layout, (3, 10)) != known
    assert known.pin("pip").line == "pip==26.3" and known.pin("rich").line == "rich==15.0.0 ; x"
    assert (len(known.pins()), known.download_bytes()) == (2, 0)
    with pytest.raises(KeyError):
        known.pin("torch")


def test_success_replaces(layout: Layout) -> None:
    fake(layout, layout.home, "old")
    with replacing(layout):
        assert not layout.marker.exists()
        fake(layout, layout.home, "new")
    assert names(layout) == ["new"]
    assert not layout.previous.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_puts_the_old_one_back(layout: Layout, error: type[BaseException]) -> None:
    fake(layout, layout.home, "old")
    with pytest.raises(error), replacing(layout):
        fake(layout, layout.home, "new", whole=False)
        raise error
    assert names(layout) == ["old"]
    assert not layout.previous.exists()


def test_failure_of_the_first_leaves_nothing(layout: Layout) -> None:
    with pytest.raises(RuntimeError), replacing(layout):
        fake(layout, layout.home, "new", whole=False)
        raise RuntimeError
    assert not layout.home.exists()


@pytest.mark.parametrize(
    ("home", "previous", "left"),
    [
        (None, "old", "old"),  # cut off between the two renames
        ("half", "old", "old"),  # while building
        ("new", "old", "new"),  # before the old one was thrown away
        ("half", None, None),
        ("new", None, "new"),
    ],
)
def test_a_power_cut_is_mended_at_the_next_start(
    layout: Layout, home: str | None, previous: str | None, left: str | None
) -> None:
    if home:
        fake(layout, layout.home, home, whole=home != "half")
    if previous:
        fake(layout, layout.previous, previous)
    recover(layout)
    assert not layout.previous.exists()
    assert (names(layout) if layout.home.exists() else None) == ([left] if left else None)


def test_folders_of_others_stay(layout: Layout) -> None:
    layout.home.mkdir()
    with replacing(layout):
        pass  # an empty folder is nobody's
    (layout.home / "thesis.tex").touch()
    with pytest.raises(UserError, match="DREAMBOOTH_ENV"), replacing(layout):
        pass
    assert names(layout) == ["thesis.tex"]


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.lock"
    with (
        held(path),
        pytest.raises(DreamBoothError, match="another installation"),
        held(path),
    ):
        pass
    with held(path):
        pass


def test_children_get_nothing_of_the_host() -> None:
    environ = {
        "PYTHONPATH": "/host",
        "PYTHONHOME": "/host",
        "Pip_Target": "/host",
        "PIP_PREFIX": "/host",
        "PIP_USER": "1",
        "VIRTUAL_ENV": "/host",
        "PIP_INDEX_URL": "https://mirror",
        "HF_ENDPOINT": "https://mirror",
        "HTTPS_PROXY": "http://proxy",
        "PATH": "/bin",
    }
    assert clean_environment(environ) == {
        "PIP_INDEX_URL": "https://mirror",
        "HF_ENDPOINT": "https://mirror",
        "HTTPS_PROXY": "http://proxy",
        "PATH": "/bin",
        "PIP_USER": "0",
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
    }
