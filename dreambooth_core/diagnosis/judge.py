"""What is wrong, and what to do about it: a pure function of the facts."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_core.diagnosis.facts import BROKEN, NOTE, WARNING, Facts, Problem
from dreambooth_core.diagnosis.packages import REQUIRED

GIB = 1024**3
DISK_NEEDED, DISK_WANTED = GIB // 2, 10 * GIB
MEMORY_WANTED = 4 * GIB
GPU_MEMORY_WANTED = 6 * GIB
FIRST_PYTHON, AFTER_LAST_PYTHON = (3, 10), (3, 14)

INSTALL = "Run 'python install.py'."
REBUILD = "Run 'python install.py --rebuild'."
_ORDER = {BROKEN: 0, WARNING: 1, NOTE: 2}


def judge(facts: Facts) -> list[Problem]:
    """Everything that is wrong or worth knowing, the worst first."""
    found: list[Problem] = []
    for check in (
        _packages,
        _torch,
        _devices,
        _kernels,
        _companions,
        _environment,
        _leaks,
        _threads,
        _places,
        _memory,
    ):
        found += check(facts)
    return sorted(found, key=lambda problem: _ORDER[problem.severity])


def _packages(facts: Facts) -> Iterator[Problem]:
    for name in REQUIRED:
        package = facts.package(name)
        if package is None or package.version is None:
            yield Problem(BROKEN, f"{name} is not installed", INSTALL)
        elif package.error:
            yield Problem(BROKEN, f"{name} {package.version} fails: {package.error}", REBUILD)
    version = tuple(int(part) for part in facts.surroundings.python.split(".")[:2])
    if not FIRST_PYTHON <= version < AFTER_LAST_PYTHON:
        what = f"Python {facts.surroundings.python} is not supported"
        yield Problem(BROKEN, what, "Use Python 3.10 to 3.13 and run install.py with it.")


def _torch(facts: Facts) -> Iterator[Problem]:
    """The build of torch against the machine's GPUs."""
    around, build = facts.surroundings, facts.torch_build
    if not build or not around.gpus:
        if around.advice:
            yield Problem(WARNING, around.advice, REBUILD)
        return
    if any(device.name.startswith("cuda") for device in facts.devices):
        return
    gpus = "; ".join(around.gpus)
    hidden = around.variables.get("CUDA_VISIBLE_DEVICES")
    if build["cuda"] is None:
        what = f"torch {build['version']} is a build without CUDA, but there is {gpus}"
        do = around.advice or REBUILD
        yield Problem(BROKEN, what, do[0].upper() + do[1:])
    elif hidden is not None and hidden.strip() in ("", "-1"):
        what = f"CUDA_VISIBLE_DEVICES={hidden!r} hides {gpus}"
        yield Problem(WARNING, what, "Unset it to train on the GPU.")
    else:
        what = f"torch {build['version']} does not see {gpus}"
        do = around.advice or f"Update the NVIDIA driver to one for CUDA {build['cuda']}."
        yield Problem(BROKEN, what, do[0].upper() + do[1:])


def _devices(facts: Facts) -> Iterator[Problem]:
    for device in facts.devices:
        if device.error:
            what = f"{device.name} ({device.label}) cannot compute: {device.error}"
            yield Problem(BROKEN, what, f"Update its driver, or: {REBUILD}")
        elif device.name != "cpu" and 0 < device.free < GPU_MEMORY_WANTED <= device.total:
            what = f"{device.name} has {size(device.free)} of {size(device.total)} free"
            yield Problem(WARNING, what, "Close what uses it, or unload the host's models.")
        elif device.name != "cpu" and 0 < device.total < GPU_MEMORY_WANTED:
            what = f"{device.name} has {size(device.total)} in all"
            yield Problem(NOTE, what, "'dreambooth check CONFIG' says what fits.")
        if device.details.get("bf16") == "false":
            what = f"{device.name} has no bf16"
            yield Problem(NOTE, what, "fp16 with a gradient scaler is used in its place.")


def _kernels(facts: Facts) -> Iterator[Problem]:
    for device in {kernel.device: None for kernel in facts.kernels}:
        tried = [each for each in facts.kernels if each.device == device]
        for dtype in {each.dtype: None for each in tried}:
            same = [e for e in tried if e.dtype == dtype and not e.kernel.startswith("sdpa:")]
            if not any(each.works for each in same):
                what = f"no attention kernel runs on {device} in {dtype}: {same[0].reason}"
                yield Problem(BROKEN, what, REBUILD)
            elif device != "cpu" and not any(each.works and each.frugal for each in same):
                what = f"{device} has only attention whose memory grows with the square in {dtype}"
                yield Problem(WARNING, what, "Lower the resolution, or update the driver.")


def _companions(facts: Facts) -> Iterator[Problem]:
    """Libraries that are not needed, but do harm when they do not fit torch."""
    torch = facts.torch_build.get("version", "?")
    vision = facts.package("torchvision")
    if vision is not None and vision.version is not None and vision.error:
        what = f"torchvision {vision.version} does not fit torch {torch}: {vision.error}"
        do = "Uninstall it ('pip uninstall torchvision'): it is not needed, and breaks diffusers."
        yield Problem(BROKEN, what, do)
    elif vision is not None and vision.version and _differ(vision.version, str(torch)):
        what = f"torchvision {vision.version} is of another build than torch {torch}"
        yield Problem(WARNING, what, "Uninstall it: it is not needed.")
    xformers = facts.package("xformers")
    if xformers is not None and xformers.error:
        what = f"xformers {xformers.version} does not fit torch {torch}: {xformers.error}"
        yield Problem(WARNING, what, "Uninstall it; torch's own attention is used.")
    bits, macos = facts.package("bitsandbytes"), "macos" in facts.surroundings.platform.lower()
    if bits is not None and bits.error:
        what = f"bitsandbytes {bits.version} fails: {bits.error}"
        yield Problem(WARNING, what, f"8-bit optimizers cannot be used. {REBUILD}")
    elif (bits is None or bits.version is None) and not macos:
        what = "bitsandbytes is not installed"
        yield Problem(WARNING, what, f"8-bit optimizers cannot be used. {INSTALL}")


def _environment(facts: Facts) -> Iterator[Problem]:
    around = facts.surroundings
    if not around.inside:
        what = f"this Python ({around.executable}) is not the engine's environment"
        do = INSTALL if not around.ready else f"Workers started by a host use {around.environment}."
        yield Problem(NOTE, what, do)
    elif not around.ready:
        what = f"the environment {around.environment} is not up to date: {around.reason}"
        yield Problem(WARNING, what, INSTALL)


def _leaks(facts: Facts) -> Iterator[Problem]:
    for name in facts.surroundings.leaked:
        what = f"{name} is set: another Python's packages get into this one"
        yield Problem(WARNING, what, "Unset it. (Workers started by a host are safe from it.)")


def _threads(facts: Facts) -> Iterator[Problem]:
    cores = facts.surroundings.cores
    accelerated = any(each.name != "cpu" and not each.error for each in facts.devices)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = facts.surroundings.variables.get(name, "")
        if not value.isdigit():
            continue
        if int(value) > cores:
            what = f"{name}={value} asks for more threads than the {cores} cores here"
            yield Problem(WARNING, what, "Unset it: threads that wait for cores are slow.")
        elif int(value) < cores and not accelerated:
            what = f"{name}={value} leaves {cores - int(value)} of {cores} cores unused"
            yield Problem(NOTE, what, "Unset it to train faster on the CPU.")


def _places(facts: Facts) -> Iterator[Problem]:
    for place in facts.places:
        for_runs = place.purpose == "runs"
        if not place.writable:
            do = "Choose another folder with run.output." if for_runs else "Set HF_HOME."
            what = f"{place.path} ({place.purpose}) cannot be written to"
            yield Problem(BROKEN if for_runs else WARNING, what, do)
        elif place.free < DISK_WANTED:
            severity = BROKEN if place.free < DISK_NEEDED and for_runs else WARNING
            what = f"{size(place.free)} free on the disk of {place.path} ({place.purpose})"
            yield Problem(severity, what, "A full-size base takes 2 to 7 GB, a result up to 7 GB.")


def _memory(facts: Facts) -> Iterator[Problem]:
    free = facts.surroundings.memory_free
    if 0 < free < MEMORY_WANTED:
        what = f"{size(free)} of memory free"
        do = "Close other programs; 'dreambooth check CONFIG' says what a run needs."
        yield Problem(WARNING, what, do)


def _differ(first: str, second: str) -> bool:
    """Whether two versions are of different builds: ``0.28+cu130`` and ``2.13+cpu``."""
    _, _, one = first.partition("+")
    _, _, other = second.partition("+")
    return bool(one and other) and one != other


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB"
