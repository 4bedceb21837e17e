"""What transformers finds in its own files is kept, as long as they are the same."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from dreambooth_core import walked
from dreambooth_core.disk import cache_folder


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package like transformers, whose walk counts how often it was made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "caches"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    reader = tmp_path / "library" / "utils" / "import_utils.py"
    for place in ("models/a/one.py", "models/a/two.py", "models/__init__.py", "utils/x.py"):
        (tmp_path / "library" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "library" / place).write_text("", encoding="utf-8")
    reader.write_text("", encoding="utf-8")
    module = types.ModuleType("import_utils")
    module.__file__ = str(reader)
    module.walks = []  # type: ignore[attr-defined]

    def create_import_structure_from_path(module_path: object) -> object:
        module.walks.append(str(module_path))
        return {"a": {frozenset({"torch"}): {"one": {"One", "Uno"}}, frozenset(): {"two": {"B"}}}}

    setattr(module, walked.FUNCTION, create_import_structure_from_path)
    return module


def _ask(module: types.ModuleType, path: Path) -> object:
    """As the next process would."""
    fresh = types.ModuleType("import_utils")
    fresh.__dict__.update(module.__dict__)
    walked.keep_walk(fresh)
    return fresh.create_import_structure_from_path(path)


def test_it_is_walked_once_until_a_file_changes(library: types.ModuleType, tmp_path: Path) -> None:
    models = tmp_path / "library" / "models"
    first = _ask(library, models)
    assert _ask(library, models) == first
    assert _ask(library, models / "__init__.py") == first
    assert len(library.walks) == 1
    for changed in (models / "a" / "one.py", tmp_path / "library" / "utils" / "import_utils.py"):
        changed.write_text("# more\n", encoding="utf-8")
        assert _ask(library, models) == first
    assert len(library.walks) == 3
    (models / "a" / "three.py").write_text("", encoding="utf-8")
    _ask(library, models)
    assert len(library.walks) == 4


def test_other_folders_are_walked_as_ever(library: types.ModuleType, tmp_path: Path) -> None:
    for _ in range(2):
        _ask(library, tmp_path / "library" / "models" / "a")
    assert len(library.walks) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"stamp": "x", "names": 3}', "\0"])
def test_a_damaged_file_costs_a_walk(
    library: types.ModuleType, tmp_path: Path, damage: str
) -> None:
    models = tmp_path / "library" / "models"
    first = _ask(library, models)
    [file] = cache_folder().iterdir()
    whole = file.read_text(encoding="utf-8")
    stamp = whole.split('"stamp"')[1].split('"')[1]
    file.write_text(damage.replace("x", stamp), encoding="utf-8")
    assert _ask(library, models) == first
    assert len(library.walks) == 2
    assert file.read_text(encoding="utf-8") == whole


def test_without_a_place_it_is_walked(library: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("no folder", encoding="utf-8")
    (tmp_path / "Library").write_text("no folder", encoding="utf-8")
    for _ in range(2):
        _ask(library, tmp_path / "library" / "models")
    assert len(library.walks) == 2


def test_a_version_without_the_function_is_left_alone() -> None:
    module = types.ModuleType("import_utils")
    walked.keep_walk(module)
    assert not hasattr(module, walked.FUNCTION)
