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
            marked = []
        """,
        "heavyp/alone.py": "value = 6\n",
        "heavyp_file.py": "import heavyp_log; heavyp_log.read.append(__name__)\n",
        "heavyp_long.py": "def work(): return 'long'\n",
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
    noted: list[str] = []
    monkeypatch.setattr(
        deferral,
        "DEFERRED",
        {
            "heavyp": deferral.Deferred(
                {"Kind": "a class", "mark": noted.append},
                alone=frozenset({"heavyp.alone"}),
                read=lambda module: module.marked.extend(noted),
            ),
            "heavyp_broken": deferral.Deferred(),
            "heavyp_file": deferral.Deferred({"answer": 1}),
            "heavyp_absent": deferral.Deferred(),
        },
    )
    monkeypatch.setattr(deferral, "SHORTENED", {"heavyp_long": _shorten})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [deferral._FINDER, *sys.meta_path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("heavyp")]:
        del sys.modules[name]


def _shorten(module: types.ModuleType) -> None:
    module.work = lambda: "short"  # type: ignore[attr-defined]


@pytest.fixture
def heavy(package: Path) -> types.ModuleType:
    """The package, imported and unread."""
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


def test_a_submodule_that_needs_none_of_its_package_is_read_alone(
    heavy: types.ModuleType,
) -> None:
    assert importlib.import_module("heavyp.alone").value == 6
    assert _log() == []
    assert heavy.number == 7


def test_a_module_that_is_no_package_is_imported_from_unread(package: Path) -> None:
    namespace: dict[str, object] = {}
    exec("from heavyp_file import answer", namespace)
    assert namespace["answer"] == 1
    assert _log() == []


def test_what_was_answered_is_made_up_for_when_the_module_is_read(
    heavy: types.ModuleType,
) -> None:
    heavy.mark("early")
    assert _log() == []
    assert heavy.marked == ["early"]


def test_a_module_is_changed_when_it_was_read(package: Path) -> None:
    long = importlib.import_module("heavyp_long")
    assert long.work() == "short"
    assert long.__spec__ is not None
    assert long.__loader__ is long.__spec__.loader
    assert type(long.__loader__).__name__ == "SourceFileLoader"


def test_a_broken_module_fails_when_it_is_used_and_again_when_imported(package: Path) -> None:
    broken = importlib.import_module("heavyp_broken")
    with pytest.raises(RuntimeError, match="no driver"):
        _ = broken.anything
    assert "heavyp_broken" not in sys.modules
    with pytest.raises(RuntimeError, match="no driver"):
        _ = importlib.import_module("heavyp_broken").anything
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("heavyp_absent")


REAL = """
    import sys
    from dreambooth_core import deferral

    def unread():
        return {n for n in deferral.DEFERRED if type(sys.modules.get(n)) is deferral._Unread}

    deferral.defer()
    deferral.load_libraries()
    shapes = "torch.fx.experimental.symbolic_shapes"
    heavy = {"bitsandbytes", "torch._dynamo", "scipy.stats", "scipy.integrate", "scipy.optimize"}
    heavy.add(shapes)
    assert unread() >= heavy
    assert "torch._inductor.codecache" not in sys.modules

    import torch
    from peft.import_utils import is_bnb_4bit_available

    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)

    @torch.compiler.disable()
    def double(x):
        return x * 2

    def step():
        optimizer.zero_grad()
        output = double(layer(torch.ones(1, 2)))
        output.backward(torch.ones(1, 2))
        optimizer.step()

    step()
    assert is_bnb_4bit_available()
    assert unread() >= heavy

    # Whoever compiles has the compiler, which knows what it was not there for.
    compiled = torch.compile(lambda x: double(x + 1) - 1, backend="eager")
    assert compiled(torch.ones(1)).item() == 3
    assert not unread() & {"torch._dynamo", shapes}
    assert double._torchdynamo_disable
    step()
    from torch.distributed.tensor import _collective_utils, _decompositions

    real = sys.modules[shapes]
    name = "GuardOnDataDependentSymNode"
    assert getattr(_decompositions, name) is getattr(real, name)
    assert issubclass(getattr(real, name), RuntimeError)
    assert _collective_utils.guard_or_false(True)
    assert real.sym_eq((1, 2), (1, 2)) and not deferral._equal_sizes((1, 2), (1, 3))
    assert not deferral._equal_sizes((1,), (1, 3)) and deferral._equal_sizes([1], [1])

    from transformers.loss.loss_for_object_detection import linear_sum_assignment

    assert linear_sum_assignment([[1, 0], [0, 1]])[1].tolist() == [1, 0]

    import bitsandbytes as bnb
    from peft import OFTConfig, inject_adapter_in_model

    assert not isinstance(torch.nn.Linear(2, 2), bnb.nn.Linear4bit)
    assert "bitsandbytes" in unread()
    # It asks whether each layer is an 8-bit one.
    config = OFTConfig(r=0, oft_block_size=2, target_modules=["0"])
    inject_adapter_in_model(config, torch.nn.Sequential(torch.nn.Linear(4, 4)))
    assert issubclass(bnb.nn.Linear8bitLt, torch.nn.Linear)

    import bitsandbytes.optim

    assert isinstance(bnb.nn.Linear4bit(2, 2), torch.nn.Module)
    assert bnb.optim.AdamW8bit is bitsandbytes.optim.AdamW8bit
"""


def test_the_libraries_do_without_them_until_they_are_used() -> None:
    pytest.importorskip("bitsandbytes")
    code = textwrap.dedent(REAL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
