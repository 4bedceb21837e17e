"""uv, where there is one, installs lists of pins; pip does whatever it does not."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from dreambooth_core.environment.pins import Pin
from dreambooth_core.environment.pip import Pip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="writes shell programs")
PINS = [Pin("one==1", hashes=("a" * 64,)), Pin("two==2", hashes=("b" * 64,))]
PROGRAM = """#!{python}
import json, os, sys
record = dict(argv=sys.argv[1:], uv={{k: v for k, v in os.environ.items() if k.startswith("UV_")}})
record |= dict(pins=open(sys.argv[-1]).read() if os.path.exists(sys.argv[-1]) else "")
record |= dict(cert=os.environ.get("SSL_CERT_FILE"))
with open({record!r}, "a") as file:
    file.write(json.dumps(dict(record, name={name!r})) + "\\n")
if "config" in sys.argv:
    print("global.index-url='https://mirror.example/simple'")
    print("global.find-links='/one /two'")
    print("global.cert='/my.pem'")
sys.exit({code})
"""


class Programs:
    """A uv on the search path and a pip, which note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "record.jsonl"

    def add(self, name: str, code: int) -> Path:
        """Writes one."""
        path = self.folder / name
        text = PROGRAM.format(python=sys.executable, record=str(self.record), name=name, code=code)
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def calls(self) -> list[dict[str, object]]:
        """The calls that installed something."""
        lines = self.record.read_text(encoding="utf-8").splitlines()
        return [call for call in map(json.loads, lines) if "config" not in call["argv"]]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """No uv yet; the pip is ``python -m pip`` of a Python that is one of these programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return Programs(tmp_path)


def install(programs: Programs, *pins: Pin, options: tuple[str, ...] = ()) -> None:
    """Installs pins with what programs there are."""
    python = programs.add("python", 0)
    with (programs.folder / "log").open("w", encoding="utf-8") as log:
        Pip([str(python), "-m", "pip"], log, options).install_pins(pins, step="these")


def test_uv_gets_the_hashes_the_places_and_no_settings_of_its_own(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.add("uv", 0)
    monkeypatch.setenv("UV_NO_VERIFY_HASHES", "1")
    monkeypatch.setenv("UV_CACHE_DIR", "/cache")
    install(programs, *PINS)
    (call,) = programs.calls()
    assert call["name"] == "uv" and call["uv"] == {"UV_CACHE_DIR": "/cache"}
    said = " ".join(call["argv"])  # type: ignore[arg-type]
    assert "--require-hashes" in said and "--no-deps" in said and "--no-config" in said
    assert "--default-index https://mirror.example/simple" in said
    assert "--find-links /one --find-links /two" in said and call["cert"] == "/my.pem"
    assert call["pins"] == "\n".join(pin.text for pin in PINS) + "\n"


def test_the_index_that_was_named_goes_before_the_configured_one(programs: Programs) -> None:
    programs.add("uv", 0)
    install(programs, *PINS, options=("--index-url", "https://named.example"))
    (call,) = programs.calls()
    assert "https://named.example" in call["argv"]  # type: ignore[operator]
    assert "https://mirror.example/simple" not in call["argv"]  # type: ignore[operator]


def test_what_uv_cannot_pip_does(programs: Programs) -> None:
    programs.add("uv", 1)
    install(programs, *PINS)
    assert [call["name"] for call in programs.calls()] == ["uv", "python"]
    last = programs.calls()[-1]
    assert "--require-hashes" in last["argv"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("pins", "options"), [(PINS[:1], ()), (PINS, ("--target", "/somewhere", "--upgrade"))]
)
def test_large_files_and_folders_of_packages_are_left_to_pip(
    programs: Programs, pins: list[Pin], options: tuple[str, ...]
) -> None:
    programs.add("uv", 0)
    install(programs, *pins, options=options)
    assert [call["name"] for call in programs.calls()] == ["python"]


def test_without_uv_there_is_pip(programs: Programs) -> None:
    install(programs, *PINS)
    assert [call["name"] for call in programs.calls()] == ["python"]
