"""What the files at the root promise: to installers, to hosts, to old Pythons."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker

import dreambooth_core
from dreambooth_core.environment.pins import Pin, hashes_of_torch, read_pins, read_wheels
from dreambooth_core.environment.torch_builds import BUILDS

ROOT = Path(__file__).resolve().parents[2]
ON_DEMAND = {"wandb", "pillow_heif", "xformers", "dadaptation"}
"""Used where somebody installed them, and done without elsewhere."""
LOCKS = sorted((ROOT / "locks").glob("*.txt"))


def names(lock: Path) -> set[str]:
    """The packages of a lock."""
    return {pin.name for pin in read_pins(lock.read_text(encoding="utf-8"))}


def wanted_somewhere(lock: Path, pin: Pin) -> bool:
    """Whether a Python and system that install.py serves would install a pin."""
    minors = (10, 11) if lock.stem.startswith("py310") else (11, 12, 13)
    systems = (("linux", "posix"), ("win32", "nt"), ("darwin", "posix"))
    return not pin.marker or any(
        Marker(pin.marker).evaluate(
            {"python_full_version": f"3.{minor}.9", "sys_platform": system, "os_name": name}
        )
        for minor in minors
        for system, name in systems
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_locks_pin_everything_with_hashes_and_name_no_place(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    for pin in read_pins(text):
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;]+", pin.requirement)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in pin.hashes)
        assert pin.hashes or not wanted_somewhere(lock, pin), (
            f"no file of {pin.line} can be checked"
        )
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_locks_hold_no_torch(lock: Path) -> None:
    held_back = {"torch", "torchvision", "torchaudio", "xformers"}
    assert not names(lock) & held_back
    if not lock.stem.startswith("torch-"):
        assert not [n for n in names(lock) if n.startswith(("nvidia", "cuda", "triton"))]


MACHINES = [("linux", "x86_64"), ("linux", "arm64"), ("win32", "x86_64"), ("darwin", "arm64")]


@pytest.mark.parametrize("python", [(3, 10), (3, 11), (3, 12), (3, 13)])
@pytest.mark.parametrize(
    ("build", "system", "architecture"),
    [
        (build, *machine)
        for build in ("cpu", "cu130", "cu126")
        for machine in MACHINES
        if machine[0] in BUILDS[build].megabytes
    ],
)
def test_torch_has_one_published_hash_for_each_machine(
    build: str, system: str, architecture: str, python: tuple[int, int]
) -> None:
    table = read_wheels((ROOT / "locks" / "torch.sha256").read_text(encoding="utf-8"))
    versions = [BUILDS[build].version(system)]
    assert len(hashes_of_torch(table, versions, python, system, architecture)) == 1


@pytest.mark.parametrize("python", ["py310", "py311"])
def test_locks_hold_all_that_is_asked_for(python: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"\nengine = \[\n(.*?)\n\]", project, re.DOTALL)
    tools = re.search(r"\ntest = \[\n(.*?)\n\]", project, re.DOTALL)
    assert dependencies and tools
    for wanted, lock in ((dependencies[1], python), (tools[1], f"{python}-test")):
        asked = set(re.findall(r'^\s+"([A-Za-z0-9_.-]+)', wanted, re.MULTILINE)) - {"torch"}
        pinned = names(ROOT / "locks" / f"{lock}.txt")
        assert {name.lower().replace("_", "-") for name in asked} <= pinned


def test_what_checks_before_a_commit_is_what_checks_after_it() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    tools = (ROOT / "locks" / "py311-test.txt").read_text(encoding="utf-8")
    for pinned in re.findall(r'"(\w+==[\w.]+)"', hooks):
        assert pinned in [pin.requirement for pin in read_pins(tools)]


def test_what_is_imported_is_declared() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = {n.lower() for n in re.findall(r'^ +"([A-Za-z0-9_-]+)', project, re.MULTILINE)}
    distributions = importlib.metadata.packages_distributions()
    imported: dict[str, str] = {}
    for file in (ROOT / "dreambooth_core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(node.module or "")
            imported |= {module.partition(".")[0]: file.name for module in modules}
    theirs = set(imported) - set(sys.stdlib_module_names) - {"dreambooth_core", *ON_DEMAND}
    for module in sorted(theirs):
        names = {n.lower().replace("_", "-") for n in distributions.get(module, [module])}
        assert names & {n.replace("_", "-") for n in declared}, f"{module} in {imported[module]}"


def test_one_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{dreambooth_core.__version__}"\n' in project


def test_requirements_install_nothing_into_a_host() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines and all(line.startswith("#") for line in lines)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "\ndependencies = []\n" in project, "comfy-cli installs these into ComfyUI"


def test_the_registry_gets_what_it_asks_for_and_no_more() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for wanted in (r'Repository = "https://\S+"', r'Icon = "https://\S+"', "requires-comfyui = "):
        assert re.search(rf"\n{wanted}", project), wanted
    left_out = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", "docs/", "benchmarks/", "tools/"} <= set(left_out)
    needed = ("install.py", "web", "locales", "locks", "example_workflows", "comfy_nodes")
    assert not {name for name in needed if name in left_out or f"{name}/" in left_out}


def test_old_pythons_can_read_the_installer() -> None:
    ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 4))


def test_the_installer_needs_the_standard_library_alone() -> None:
    files = [ROOT / "install.py", ROOT / "dreambooth_core" / "__init__.py"]
    files += [ROOT / "dreambooth_core" / "errors.py"]
    for folder in ("environment", "disk"):
        files += (ROOT / "dreambooth_core" / folder).glob("*.py")
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(node.module or "")
            for module in modules:
                top = module.partition(".")[0]
                ours = ".".join(module.split(".")[:2])
                assert top in sys.stdlib_module_names or ours in (
                    "dreambooth_core",
                    *(f"dreambooth_core.{name}" for name in ("environment", "disk", "errors")),
                ), f"{file.name} imports {module}"


# -- the hosts' doors ----------------------------------------------------------------------------


@pytest.fixture
def fresh_modules() -> Iterator[None]:
    """What a door loads is forgotten afterwards, and what the tests had loaded is back."""
    before = dict(sys.modules)
    path = list(sys.path)
    for name in list(sys.modules):
        if name.partition(".")[0] == "dreambooth_core":
            del sys.modules[name]
    yield
    sys.modules.clear()
    sys.modules.update(before)
    sys.path[:] = path


def run_door(path: Path, name: str) -> types.ModuleType:
    """Runs a file as the hosts do: by path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("fresh_modules")
def test_reload_ui_registers_again_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "helpers" / "a1111")
    callbacks = importlib.import_module("modules.script_callbacks")
    before, loaded = list(sys.path), set(sys.modules)
    for _ in range(2):  # the script runs again, with the modules still there
        callbacks.clear_callbacks()
        run_door(ROOT / "scripts" / "dreambooth.py", "dreambooth.py")
        assert all(len(callbacks.registered[kind]) == 1 for kind in ("ui_tabs", "app_started"))
    assert sys.path == before
    assert not {"gradio", "torch", "fastapi"} & (set(sys.modules) - loaded)


@pytest.mark.usefixtures("fresh_modules")
def test_an_unknown_host_gets_a_line(caplog: pytest.LogCaptureFixture) -> None:
    run_door(ROOT / "scripts" / "dreambooth.py", "dreambooth.py")
    assert "WebUI is not known here" in caplog.text


@pytest.mark.usefixtures("fresh_modules")
def test_comfyui_gets_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    host = types.ModuleType("folder_paths")
    host.__spec__ = importlib.util.spec_from_loader("folder_paths", None)
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    before = list(sys.path)
    pack = run_door(ROOT / "__init__.py", "/hosts/custom_nodes/dreambooth")
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    assert "DreamBoothTrainLora" in pack.NODE_CLASS_MAPPINGS
    assert "dreambooth_comfy_nodes" in sys.modules
    assert sys.path == before


def test_preload_takes_a_parser() -> None:
    parser = argparse.ArgumentParser()
    run_door(ROOT / "preload.py", "preload").preload(parser)
    assert parser.parse_args([]).dreambooth_dir is None


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, dreambooth_core, dreambooth_core.environment; "
        "print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert said.strip() == "[]"
