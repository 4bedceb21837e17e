"""The build of torch that fits a machine."""

from __future__ import annotations

import pytest

from dreambooth_core.environment.machine import Machine, NvidiaGpu
from dreambooth_core.environment.torch_builds import BUILDS, TORCH_VERSION, choose
from dreambooth_core.errors import UserError


def nvidia(
    driver: tuple[int, ...], capability: tuple[int, int] | None, system: str = "linux"
) -> Machine:
    """A machine with one NVIDIA GPU."""
    return Machine(system, "x86_64", nvidia=(NvidiaGpu("A GPU", driver, capability),))


@pytest.mark.parametrize(
    ("machine", "build"),
    [
        (Machine("linux", "x86_64"), "cpu"),
        (Machine("win32", "x86_64"), "cpu"),
        (Machine("darwin", "arm64"), "cpu"),
        (nvidia((580, 95, 5), (8, 9)), "cu130"),
        (nvidia((581, 15), (12, 0), "win32"), "cu130"),
        (nvidia((560, 35, 3), (8, 6)), "cu126"),  # the driver is too old for CUDA 13
        (nvidia((580, 95, 5), (6, 1)), "cu126"),  # CUDA 13 has no kernels for Pascal
        (nvidia((552, 22), (5, 2), "win32"), "cu126"),
        (nvidia((530, 41), None), "cu126"),  # too old to tell the capability
        (Machine("linux", "x86_64", amd=True), "rocm7.2"),
        (Machine("linux", "x86_64", intel=True), "xpu"),
        (Machine("win32", "x86_64", intel=True), "xpu"),
    ],
)
def test_the_build_follows_from_the_machine(machine: Machine, build: str) -> None:
    choice = choose(machine)
    assert choice.build.name == build
    assert choice.warning is None
    assert machine.system in choice.build.megabytes


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (nvidia((470, 82), None), "update it to 525.60"),
        (nvidia((560, 35), (12, 0)), "update it to 580.65"),  # Blackwell needs CUDA 13
        (nvidia((552, 22), (12, 0), "win32"), "update it to 580.88"),
        (nvidia((580, 95), (3, 5)), "no kernels for A GPU"),
        (Machine("win32", "x86_64", amd=True), "Linux and WSL 2"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_named(machine: Machine, said: str) -> None:
    choice = choose(machine)
    assert choice.build.name == "cpu"
    assert choice.warning and said in choice.warning


def test_the_most_capable_gpu_decides() -> None:
    gpus = (NvidiaGpu("old", (580, 95), (6, 1)), NvidiaGpu("new", (580, 95), (8, 6)))
    choice = choose(Machine("linux", "x86_64", nvidia=gpus))
    assert choice.build.name == "cu130"
    assert choice.reason.startswith("new")


def test_asking_by_name_wins() -> None:
    assert choose(nvidia((580, 95), (8, 9)), "cpu").build.name == "cpu"


@pytest.mark.parametrize(
    ("machine", "asked", "said"),
    [
        (Machine("darwin", "x86_64"), "auto", "Intel processor"),
        (Machine("freebsd14", "x86_64"), "auto", "freebsd14"),
        (Machine("darwin", "arm64"), "cu130", "Choose one of: auto, cpu"),
        (Machine("linux", "x86_64"), "cu121", "Choose one of: auto, cpu, cu130, cu126"),
    ],
)
def test_what_does_not_exist_is_refused(machine: Machine, asked: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(machine, asked)


def test_no_other_build_can_be_taken_for_the_chosen_one() -> None:
    """On Linux the Python Package Index has the CUDA build: the CPU one is asked for by name."""
    assert BUILDS["cpu"].requirement("linux") == f"torch=={TORCH_VERSION}+cpu"
    assert BUILDS["cpu"].index("linux") == "https://download.pytorch.org/whl/cpu"
    assert BUILDS["cpu"].index("darwin") is None
    assert BUILDS["cu130"].requirement("linux") == f"torch==={TORCH_VERSION}"
    assert BUILDS["cu130"].index("win32") == "https://download.pytorch.org/whl/cu130"
