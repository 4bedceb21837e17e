"""Modules that are put off: unread until touched, and then what they would have been."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import deferral

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``heavyp`` whose reading is noted in ``heavyp_log``, put off with stand-ins."""
    files = {
        "heavyp_log.py": "read = []\n",
        "heavyp/__init__.py": """
            import heavyp_log
            heavyp_log.read.append(__name__)
            from heavyp import part
            class Kind: ...
            def double(n): return 2 * n
            number = 7
        """,
        "heavyp/part.py": """
            import heavyp_log
            heavyp_log.read.append(__name__)
            value = 5
        """,
        "heavyp_broken.py": "raise RuntimeError('no driver')\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.setattr(deferral, "ANSWERS", {"Kind": "a class"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [deferral._FINDER, *sys.meta_path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("heavyp")]:
        del sys.modules[name]


@pytest.fixture
def heavy(package: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The package, imported and unread."""
    monkeypatch.setattr(deferral, "PACKAGE", "heavyp")
    return importlib.import_module("heavyp")


def _log() -> list[str]:
    read: list[str] = importlib.import_module("heavyp_log").read
    return read


def test_a_module_is_read_when_something_is_asked_of_it(
    package: Path, heavy: types.ModuleType
) -> None:
    assert _log() == []
    assert heavy.__file__ == str(package / "heavyp" / "__init__.py")
    assert _log() == []
    assert heavy.number == 7
    assert _log() == ["heavyp", "heavyp.part"]
    assert importlib.import_module("heavyp") is heavy
    assert heavy.part.value == 5


def test_what_is_answered_does_not_read_it(heavy: types.ModuleType) -> None:
    assert heavy.Kind == "a class"
    assert _log() == []
    assert heavy.double(4) == 8
    assert isinstance(heavy.Kind(), heavy.Kind)


def test_a_submodule_reads_its_package_and_is_read_once(heavy: types.ModuleType) -> None:
    part = importlib.import_module("heavyp.part")
    assert _log() == ["heavyp", "heavyp.part"]
    assert part.value == 5
    assert part is sys.modules["heavyp"].part


def test_a_broken_module_fails_when_it_is_used_and_again_when_imported(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "PACKAGE", "heavyp_broken")
    broken = importlib.import_module("heavyp_broken")
    with pytest.raises(RuntimeError, match="no driver"):
        _ = broken.anything
    assert "heavyp_broken" not in sys.modules
    with pytest.raises(RuntimeError, match="no driver"):
        _ = importlib.import_module("heavyp_broken").anything
    monkeypatch.setattr(deferral, "PACKAGE", "heavyp_absent")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("heavyp_absent")


REAL = """
    import sys
    from dreambooth_core.deferral import defer, load_libraries

    defer()
    load_libraries()
    assert "bitsandbytes.nn" not in sys.modules
    assert "torch._inductor.codecache" not in sys.modules

    import torch
    from peft.import_utils import is_bnb_4bit_available

    assert is_bnb_4bit_available()
    assert "bitsandbytes.nn" not in sys.modules

    import bitsandbytes as bnb
    from peft import OFTConfig, inject_adapter_in_model

    assert not isinstance(torch.nn.Linear(2, 2), bnb.nn.Linear4bit)
    assert "bitsandbytes.nn" not in sys.modules
    # It asks whether each layer is an 8-bit one.
    config = OFTConfig(r=0, oft_block_size=2, target_modules=["0"])
    inject_adapter_in_model(config, torch.nn.Sequential(torch.nn.Linear(4, 4)))
    assert issubclass(bnb.nn.Linear8bitLt, torch.nn.Linear)

    import bitsandbytes.optim

    assert isinstance(bnb.nn.Linear4bit(2, 2), torch.nn.Module)
    assert bnb.optim.AdamW8bit is bitsandbytes.optim.AdamW8bit
"""


def test_the_libraries_do_without_bitsandbytes_until_it_is_used() -> None:
    pytest.importorskip("bitsandbytes")
    code = textwrap.dedent(REAL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
