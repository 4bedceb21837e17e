"""``dreambooth doctor``: what it finds here, and what it would say elsewhere."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_core.commands import doctor
from dreambooth_core.commands.main import main
from dreambooth_core.diagnosis import Device, Facts, Kernel, Package, devices, judge, packages
from dreambooth_core.diagnosis.facts import Place, Surroundings
from dreambooth_core.diagnosis.judge import GIB
from dreambooth_core.diagnosis.surroundings import hub_cache, place

AROUND = Surroundings(
    dreambooth="1",
    python="3.11.7",
    executable="/env/bin/python",
    platform="Linux-6",
    cores=8,
    memory_free=16 * GIB,
    memory_total=32 * GIB,
    environment="/env",
    inside=True,
    ready=True,
    reason="",
    advice=None,
    gpus=(),
    leaked=(),
    variables={},
)
CPU = Device("cpu", "a processor", 16 * GIB, 32 * GIB)
GPU = Device("cuda:0", "RTX 4090", 20 * GIB, 24 * GIB, {"capability": "8.9", "bf16": "true"})


def kernel(device: str = "cpu", works: bool = True, frugal: bool = True) -> Kernel:
    return Kernel(device, "float32", 64, "sdpa", works, frugal, "" if works else "because")


FINE = Facts(
    surroundings=AROUND,
    packages=tuple(Package(name, "1.0") for name in (*packages.REQUIRED, "bitsandbytes")),
    torch_build={"version": "2.13.0+cpu", "cuda": None, "hip": None, "threads": 8},
    devices=(CPU,),
    kernels=(kernel(),),
    places=(Place("runs", "/runs", True, 50 * GIB, 100 * GIB),),
)
CUDA_BUILD = {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "threads": 8}
SEES_GPU = replace(
    FINE,
    torch_build=CUDA_BUILD,
    devices=(GPU, CPU),
    kernels=(kernel(), kernel("cuda:0")),
    surroundings=replace(AROUND, gpus=("RTX 4090, driver 581.15",)),
)


def around(**changes: object) -> Facts:
    return replace(FINE, surroundings=replace(AROUND, **changes))


def with_package(package: Package) -> Facts:
    others = tuple(each for each in FINE.packages if each.name != package.name)
    return replace(FINE, packages=(*others, package))


def test_nothing_is_wrong_where_nothing_is_wrong() -> None:
    assert judge(FINE) == []
    assert judge(SEES_GPU) == []


@pytest.mark.parametrize(
    ("facts", "severity", "what", "do"),
    [
        (
            replace(FINE, surroundings=replace(AROUND, gpus=("RTX 4090, driver 581.15",))),
            "broken",
            "torch 2.13.0+cpu is a build without CUDA, but there is RTX 4090, driver 581.15",
            "install.py --rebuild",
        ),
        (
            around(gpus=("GTX 1080, driver 400.1",), advice="the driver is too old: update it"),
            "broken",
            "a build without CUDA",
            "The driver is too old: update it",
        ),
        (
            replace(SEES_GPU, devices=(CPU,), kernels=(kernel(),)),
            "broken",
            "does not see RTX 4090",
            "Update the NVIDIA driver to one for CUDA 13.0",
        ),
        (
            replace(
                SEES_GPU,
                devices=(CPU,),
                kernels=(kernel(),),
                surroundings=replace(
                    AROUND, gpus=("RTX 4090",), variables={"CUDA_VISIBLE_DEVICES": "-1"}
                ),
            ),
            "warning",
            "CUDA_VISIBLE_DEVICES='-1' hides RTX 4090",
            "Unset",
        ),
        (
            replace(SEES_GPU, devices=(replace(GPU, error="no kernel image"), CPU)),
            "broken",
            "cuda:0 (RTX 4090) cannot compute: no kernel image",
            "driver",
        ),
        (
            replace(SEES_GPU, devices=(replace(GPU, free=GIB), CPU)),
            "warning",
            "cuda:0 has 1.0 GiB of 24.0 GiB free",
            "Close what uses it",
        ),
        (
            replace(SEES_GPU, devices=(replace(GPU, free=3 * GIB, total=4 * GIB), CPU)),
            "note",
            "cuda:0 has 4.0 GiB in all",
            "check CONFIG",
        ),
        (
            replace(SEES_GPU, devices=(replace(GPU, details={"bf16": "false"}), CPU)),
            "note",
            "cuda:0 has no bf16",
            "fp16",
        ),
        (
            replace(FINE, kernels=(kernel(works=False),)),
            "broken",
            "no attention kernel runs on cpu in float32: because",
            "rebuild",
        ),
        (
            replace(SEES_GPU, kernels=(kernel(), kernel("cuda:0", frugal=False))),
            "warning",
            "cuda:0 has only attention whose memory grows with the square",
            "resolution",
        ),
        (
            with_package(Package("peft", None)),
            "broken",
            "peft is not installed",
            "python install.py",
        ),
        (
            with_package(Package("diffusers", "0.42", "ImportError: x")),
            "broken",
            "diffusers 0.42 fails: ImportError: x",
            "rebuild",
        ),
        (
            with_package(Package("torchvision", "0.28+cu130", "RuntimeError: torchvision::nms")),
            "broken",
            "torchvision 0.28+cu130 does not fit torch 2.13.0+cpu",
            "not needed",
        ),
        (
            with_package(Package("torchvision", "0.28+cu130")),
            "warning",
            "torchvision 0.28+cu130 is of another build than torch 2.13.0+cpu",
            "not needed",
        ),
        (
            with_package(Package("xformers", "0.0.35", "ImportError: y")),
            "warning",
            "xformers 0.0.35 does not fit torch",
            "Uninstall",
        ),
        (
            with_package(Package("bitsandbytes", "0.50", "OSError: z")),
            "warning",
            "bitsandbytes 0.50 fails: OSError: z",
            "8-bit",
        ),
        (with_package(Package("bitsandbytes", None)), "warning", "not installed", "8-bit"),
        (around(python="3.9.1"), "broken", "Python 3.9.1 is not supported", "3.10 to 3.13"),
        (around(inside=False), "note", "is not the engine's environment", "use /env"),
        (around(inside=False, ready=False), "note", "is not the engine's", "python install.py"),
        (
            around(ready=False, reason="the locked versions changed"),
            "warning",
            "not up to date: the locked versions changed",
            "python install.py",
        ),
        (around(leaked=("PYTHONPATH",)), "warning", "PYTHONPATH is set", "Unset"),
        (
            around(variables={"OMP_NUM_THREADS": "64"}),
            "warning",
            "OMP_NUM_THREADS=64 asks for more threads than the 8 cores here",
            "Unset",
        ),
        (
            around(variables={"OMP_NUM_THREADS": "1"}),
            "note",
            "OMP_NUM_THREADS=1 leaves 7 of 8 cores unused",
            "Unset",
        ),
        (around(memory_free=GIB), "warning", "1.0 GiB of memory free", "Close other programs"),
        (
            replace(FINE, places=(Place("runs", "/runs", False, 50 * GIB, 90 * GIB),)),
            "broken",
            "/runs (runs) cannot be written to",
            "run.output",
        ),
        (
            replace(FINE, places=(Place("runs", "/runs", True, GIB // 4, 90 * GIB),)),
            "broken",
            "0.2 GiB free on the disk of /runs",
            "GB",
        ),
        (
            replace(FINE, places=(Place("models from the hub", "/hub", True, GIB, 90 * GIB),)),
            "warning",
            "1.0 GiB free on the disk of /hub",
            "GB",
        ),
    ],
)
def test_what_is_wrong_is_named_with_a_way_out(
    facts: Facts, severity: str, what: str, do: str
) -> None:
    (problem,) = judge(facts)
    assert problem.severity == severity
    assert what in problem.what
    assert do in problem.do


def test_the_worst_comes_first() -> None:
    facts = replace(around(variables={"OMP_NUM_THREADS": "1"}, leaked=("PYTHONHOME",)), devices=())
    facts = replace(facts, packages=facts.packages[1:])
    assert [problem.severity for problem in judge(facts)] == ["broken", "warning", "note"]


def test_no_threads_are_missed_where_a_gpu_does_the_work() -> None:
    one = replace(SEES_GPU.surroundings, variables={"OMP_NUM_THREADS": "1"})
    assert judge(replace(SEES_GPU, surroundings=one)) == []


def test_packages_are_tried_not_only_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages.look("safetensors").error == ""
    assert packages.look("no-such-package").version is None
    for name in ("brokenpackage", "torchvision"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not\\nfor this torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the process of its own
    assert packages.look("brokenpackage") == Package("brokenpackage", "1.0", "RuntimeError: not")
    assert packages.look("torchvision").error


def test_kernels_really_run_here() -> None:
    tried = {(each.kernel, each.dtype, each.head_size): each for each in devices.kernels("cpu")}
    for dtype in ("float32", "bfloat16"):
        for size in devices.HEAD_SIZES:
            assert tried["sdpa", dtype, size].works
            assert tried["sdpa: flash", dtype, size].frugal
            assert tried["sdpa: math", dtype, size].works
            assert not tried["sdpa: math", dtype, size].frugal
            assert not tried["sdpa: cudnn", dtype, size].works
    assert tried["sdpa: cudnn", "float32", 64].reason == "not for this device and precision"


def test_the_cpu_is_a_device_that_computes() -> None:
    cpu = devices.devices()[-1]
    assert (cpu.name, cpu.error) == ("cpu", "")
    assert 0 < cpu.free <= cpu.total


def test_a_place_is_judged_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = place("runs", tmp_path / "not" / "yet")
    assert found.writable and found.free > 0
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert not place("runs", tmp_path / "file" / "below").writable
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert hub_cache() == Path(os.environ["HF_HOME"]) / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert hub_cache() == tmp_path


def test_the_command_reports_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--runs", str(tmp_path)]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == all(each["severity"] != "broken" for each in report["problems"])
    assert report["torch_build"]["version"]
    assert {each["name"] for each in report["packages"]} >= set(packages.REQUIRED)
    assert report["kernels"] and report["devices"]
    assert report["places"][0]["path"] == str(tmp_path)


@pytest.mark.parametrize(("facts", "code"), [(FINE, 0), (replace(FINE, packages=()), 1)])
def test_the_command_for_people(
    facts: Facts,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda _: facts)
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert ("Ready to train" in shown) == (code == 0)
    assert ("torch is not installed. Run 'python install.py'." in shown) == (code == 1)
    assert "a processor" in shown and "sdpa" in shown
