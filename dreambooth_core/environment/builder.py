"""Builds the environment: an empty one, the locked packages, torch, the dreambooth command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dreambooth_core.environment import makers, recipe
from dreambooth_core.environment.layout import Layout, Marker
from dreambooth_core.environment.machine import Machine, detect
from dreambooth_core.environment.pins import Pin
from dreambooth_core.environment.pip import Pip
from dreambooth_core.environment.plan import UNPACKED
from dreambooth_core.environment.processes import run_logged, started
from dreambooth_core.environment.progress import Reporter
from dreambooth_core.environment.sources import (
    Source,
    package_options,
    package_place,
    torch_source,
)
from dreambooth_core.environment.torch_builds import (
    BUILDS,
    PYTORCH_INDEX,
    TORCH_VERSION,
    XFORMERS_FOR_TORCH,
    Choice,
    choose,
)
from dreambooth_core.environment.transaction import held, recover, replacing
from dreambooth_core.errors import DreamBoothError, UserError


@dataclass(frozen=True)
class Wish:
    """What an environment should be."""

    torch: str | None = None
    """The name of a build, or ``auto``; None keeps what was asked for before. ``none`` leaves
    torch out (for tests of this installer)."""
    test: bool = False
    """With the tools of the test suite."""
    xformers: bool = False
    rebuild: bool = False
    """Anew, even where nothing changed."""


class Builder:
    """Brings one environment to what is wished. ``log`` takes all that pip says."""

    def __init__(self, layout: Layout, reporter: Reporter, log: Path) -> None:
        self.layout = layout
        self.reporter = reporter
        self.log_path = log
        self.recipe = recipe.recipe_for(layout)
        self.environ = os.environ

    def bring_up_to(self, wish: Wish) -> None:
        """Does what is missing; returns at once, and says nothing, where nothing is.

        Raises:
            DreamBoothError: a step failed. Nothing half-made is left behind.
            KeyboardInterrupt: the user stopped it; the same holds.
        """
        missing = self._missing(wish)
        if not missing:
            return
        with held(self.layout.lock):
            recover(self.layout)
            with self._log() as log:
                begun = time.monotonic()
                self._do(wish, self._missing(wish), log)
        self.reporter.say(f"Ready after {time.monotonic() - begun:.0f} s.")

    def _missing(self, wish: Wish) -> list[str]:
        """``packages`` (everything), or which of ``project``, ``test``, ``xformers``."""
        now = recipe.status(self.layout, wish.torch)
        if wish.rebuild or not now.ready:
            return ["packages"]
        known = self.layout.known()
        assert known is not None
        missing = [] if now.project_ready else ["project"]
        recipe_there = recipe.recipe_for(self.layout, known.version)
        if wish.test and known.added.get("test") != recipe.test_fingerprint(recipe_there):
            missing.append("test")
        if wish.xformers and "xformers" not in known.added:
            missing.append("xformers")
        return missing

    def _do(self, wish: Wish, missing: list[str], log: IO[str]) -> None:
        if "packages" in missing:
            self._build(wish, log)
            return
        known = self.layout.known()
        assert known is not None
        self.recipe = recipe.recipe_for(self.layout, known.version)
        pip = self._pip_of(known, log)
        if "project" in missing:
            self.reporter.say(f"Setting up the dreambooth command anew in {self.layout.home}.")
            self._link(pip, known)
        if "test" in missing:
            self._add_test(pip, known, 1, 1)
        if "xformers" in missing:
            self._add_xformers(pip, known)

    # -- the whole environment ---------------------------------------------------------------

    def _build(self, wish: Wish, log: IO[str]) -> None:
        before = self.layout.known()
        reason = recipe.status(self.layout, wish.torch).reason or "as asked"
        self.reporter.say(
            f"Setting up the engine in {self.layout.home} "
            f"(Python {'.'.join(map(str, sys.version_info[:3]))}): {reason}."
        )
        machine = detect()
        torch = wish.torch or (before.asked if before else "auto")
        choice = None if torch == "none" else choose(machine, torch)
        if wish.xformers:
            xformers_for(choice.build.name if choice else "none")  # refuse before downloading
        known = Marker(
            whole=False,
            kind="venv",
            base=makers.base_python(),
            home=str(self.layout.home),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            asked=torch,
            torch=choice.build.name if choice else "none",
        )
        with replacing(self.layout):
            self.layout.note(known)
            total = 4 + wish.test
            self.reporter.step(1, total, "an empty environment")
            options = package_options(self.environ)
            known.kind = makers.make(self.layout, self.recipe, log, options)
            pip = self._pip_of(known, log)
            source = self._announce(pip, choice, machine, wish)
            pins = self.recipe.pins()
            self.reporter.step(2, total, f"{len(pins)} packages")
            if known.kind == "target":  # where pip would replace itself while it runs
                pins = [pin for pin in pins if pin.name != "pip"]
            pip.install_pins(pins, step="the packages")
            self.reporter.step(3, total, f"torch {TORCH_VERSION}" if source else "no torch")
            if source:
                self._install_torch(pip, source, machine, known)
                self._compare_unverified(before, known)
            if wish.test:
                self._add_test(pip, known, 4, total)
            self.reporter.step(total, total, "checking that all fits together")
            self._check(pip, known, with_torch=source is not None)
            self._link(pip, known)
            known.packages = recipe.packages_fingerprint(self.recipe, known.asked, self.environ)
            known.whole = True
            self.layout.note(known)
        if wish.xformers or (before and "xformers" in before.added):
            self._add_xformers(pip, known)

    def _announce(
        self, pip: Pip, choice: Choice | None, machine: Machine, wish: Wish
    ) -> Source | None:
        """Says what will be downloaded and from where, and that the disk has room for it."""
        configured = pip.configured()
        packages = self.recipe.download_bytes() / 1e6
        if wish.test:
            packages += self.recipe.download_bytes(test=True) / 1e6
        where = package_place(self.environ, configured)
        source = None
        if choice:
            source = torch_source(pip, choice.build, machine.system, self.environ, configured)
            label = f"for {choice.build.label} ({choice.reason})"
            if self.environ.get("TORCH_INDEX_URL"):
                label = "from TORCH_INDEX_URL"
            self.reporter.say(
                f"torch {TORCH_VERSION} {label}; about {source.megabytes} MB from {source.where}"
            )
            if choice.warning:
                self.reporter.say(f"Note: {choice.warning}.")
            self._say_unverified(source, machine)
        self.reporter.say(f"Everything else: about {packages:.0f} MB from {where}")
        needed = (packages + (source.megabytes if source else 0)) * UNPACKED
        free = shutil.disk_usage(self.layout.home).free / 1e6
        if free < needed:
            raise DreamBoothError(
                f"not enough room on the disk: about {needed / 1e3:.1f} GB are needed and "
                f"{free / 1e3:.1f} GB are free",
                where=self.layout.home,
                do="Make room, or set DREAMBOOTH_ENV to a folder on another disk",
            )
        return source

    def _install_torch(self, pip: Pip, source: Source, machine: Machine, known: Marker) -> None:
        """torch, and what only its GPU builds need; the lock holds what all builds need."""
        # The options of a source stand for themselves: INDEX_URL must not come before them.
        own = len(package_options(self.environ))
        alone = Pip(pip.command, pip.log, [*source.options, *pip.options[own:]], pip.progress)
        hashes = self.recipe.torch_hashes(source.versions, machine)
        needs: list[Pin] = []
        if hashes:
            pin = Pin(source.requirement, hashes=hashes)
            alone.install_pins([pin], step="torch")
            known.torch = self._installed_build(machine) or known.torch
            needs = self.recipe.beside(f"torch-{known.torch}")
        if needs:
            pip.install_pins(needs, step="what torch needs")
        elif not hashes or known.torch != "cpu":
            index = source.index if source.official else f"{PYTORCH_INDEX}/{known.torch}"
            step = "what torch needs" if hashes else "torch"
            pins = self.recipe.pins()
            known.unverified += alone.install_unverified(source.requirement, index, pins, step=step)
            known.torch = self._installed_build(machine) or known.torch

    def _installed_build(self, machine: Machine) -> str:
        """The build of torch that is there: TORCH_INDEX_URL may have another than was chosen."""
        code = "import importlib.metadata as m; print(m.version('torch'))"
        with started([*self.layout.command(), "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            version = child.stdout.read().strip()
        known = [b.name for b in BUILDS.values() if version == b.version(machine.system)]
        return known[0] if known else version.partition("+")[2]

    def _compare_unverified(self, before: Marker | None, now: Marker) -> None:
        """Refuses a file that had another content at an earlier installation.

        Raises:
            DreamBoothError: there is one. Versions are never published twice.
        """
        earlier = dict(line.split()[::-1] for line in (before.unverified if before else ()))
        for digest, name in (line.split() for line in now.unverified):
            if earlier.get(name, digest) != digest:
                raise DreamBoothError(
                    f"{name} is another file than at the last installation, and there is no "
                    "published hash that would tell which of them is right",
                    do="Ask PyTorch's developers; to take it all the same, delete the environment",
                    where=self.layout.home,
                )

    def _check(self, pip: Pip, known: Marker, with_torch: bool) -> None:
        if known.kind == "venv" and with_torch:
            pip.check()
        if with_torch:
            code = "import torch; torch.ones(2, 2).mm(torch.ones(2, 2))"
            run_logged([*self.layout.command(), "-c", code], pip.log, "a working torch")

    def _say_unverified(self, source: Source, machine: Machine) -> None:
        """Says that no hash is known for this torch, or refuses it from where that matters.

        Raises:
            UserError: it would come from a place that nothing vouches for.
        """
        if self.recipe.torch_hashes(source.versions, machine):
            return
        python = ".".join(map(str, sys.version_info[:2]))
        unknown = (
            f"no hash of torch {' or '.join(source.versions) or TORCH_VERSION} for Python {python}"
        )
        if not source.official:
            raise UserError(
                f"{unknown} is known, so a file from there could not be checked",
                where=source.where,
                do=f"Take it from PyTorch itself (TORCH_INDEX_URL={PYTORCH_INDEX}/…), or, if you "
                "trust that file, add the line that sha256sum writes of it to locks/torch.sha256",
            )
        self.reporter.say(
            f"Note: {unknown} is known. It is taken from {PYTORCH_INDEX} alone, over HTTPS, and "
            "its hash is kept for the next installation"
        )

    # -- parts that can be added -----------------------------------------------------------------

    def _link(self, pip: Pip, known: Marker) -> None:
        if known.kind == "venv":
            pip.link(self.layout.root)
        known.project = recipe.project_fingerprint(self.layout)
        self.layout.note(known)

    def _add_test(self, pip: Pip, known: Marker, number: int, total: int) -> None:
        pins = self.recipe.pins(test=True)
        self.reporter.step(number, total, f"{len(pins)} packages for the test suite")
        pip.install_pins(pins, step="the test tools")
        known.added["test"] = recipe.test_fingerprint(self.recipe)
        self.layout.note(known)

    def _add_xformers(self, pip: Pip, known: Marker) -> None:
        version = xformers_for(known.torch)
        index = f"{PYTORCH_INDEX}/{known.torch}"
        self.reporter.step(1, 1, f"xformers {version} from {index} (no hash of it is known)")
        asked = f"xformers=={version}"
        files = pip.install_unverified(asked, index, [], "--no-deps", step="xformers")
        known.unverified = sorted({*known.unverified, *files})
        known.added["xformers"] = version
        self.layout.note(known)

    def _pip_of(self, known: Marker, log: IO[str]) -> Pip:
        options = package_options(self.environ)
        if known.kind == "target":
            options = [*options, "--target", str(self.layout.site), "--upgrade"]
        return Pip([*self.layout.command(), "-m", "pip"], log, options, self.reporter.progress)

    @contextmanager
    def _log(self) -> Iterator[IO[str]]:
        """The log, named in the message when something fails."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("w", encoding="utf-8", errors="replace") as log:
            try:
                yield log
            except DreamBoothError as error:
                note = f"(log: {self.log_path})"
                do = f"{error.do.rstrip('.')} {note}" if error.do else note
                raise type(error)(error.what, where=error.where, do=do) from error


def xformers_for(torch: str) -> str:
    """The version of xformers for the pinned torch in a build: its CUDA kernels must match.

    Raises:
        UserError: there is none.
    """
    version = XFORMERS_FOR_TORCH.get(TORCH_VERSION)
    if version is None or not torch.startswith("cu"):
        raise UserError(
            f"there is no xformers for torch {TORCH_VERSION} ({torch})",
            where="--xformers",
            do="It is for NVIDIA GPUs only; training works without it",
        )
    return version
