"""Lends the GPU to runs, and brings the host's model back whatever becomes of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dreambooth_core.errors import DreamBoothError
from dreambooth_core.jobs import RunFolder, status

from ..host.base import Host

log = logging.getLogger("dreambooth")

POLL = 1.0
"""Seconds between two looks at the runs."""

Begin = Callable[[], None]
Ended = Callable[[RunFolder], None]


class Busy(RuntimeError):
    """The host may not generate now; the host shows the message."""


@dataclass(frozen=True)
class _Loan:
    run: RunFolder
    begin: Begin | None
    """Starts the worker; None where one is at work already."""


class Handover:
    """One for each host process: it outlives pages and Reload UI.

    A thread takes the host's model off the GPU, starts the workers, watches them, and puts the
    model back when the last has ended: in a ``finally``, so that no failure leaves it away.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ended: Ended = lambda run: None
        """Called with each run that is over."""
        self.words = ""
        """What the host gave up, or what is waited for; empty when it has everything."""
        self.trouble = ""
        """What went wrong when it got everything back; stays until the next time."""
        self._changed = threading.Condition()
        self._waiting: list[_Loan] = []
        self._runs: list[RunFolder] = []
        self._thread: threading.Thread | None = None
        self._busy = 0
        """Threads that have not given everything back."""
        self._gpu = threading.Lock()
        """Held from release to restore: a later thread waits until an earlier one gave back."""

    def lend(self, run: RunFolder, begin: Begin | None) -> None:
        """Takes care of a run; returns at once."""
        with self._changed:
            if run in self._runs or any(loan.run == run for loan in self._waiting):
                return
            self._waiting.append(_Loan(run, begin))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="dreambooth-handover", daemon=True
                )
                self._busy += 1
                self._thread.start()
            self._changed.notify_all()

    def withdraw(self, run: RunFolder) -> bool:
        """Forgets a run that has not begun; False if it has."""
        with self._changed:
            before = len(self._waiting)
            self._waiting = [loan for loan in self._waiting if loan.run != run]
            return len(self._waiting) < before

    def waits(self, run: RunFolder) -> bool:
        """Whether a run has not begun because the host is not ready yet."""
        with self._changed:
            return any(loan.run == run for loan in self._waiting)

    def idle(self, seconds: float | None = None) -> bool:
        """Waits until nothing is lent and all is back; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy == 0, seconds)

    def _watch(self) -> None:
        with self._gpu:
            try:
                self._guard()
                self._release()
                while self._go_on():
                    with self._changed:
                        if not self._waiting:
                            self._changed.wait(POLL)
                    if not self.words:  # just started, the host may not have had its model yet
                        self._release()
            finally:
                self._restore()
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _go_on(self) -> bool:
        """One round: begins what waits, looks at what runs. False when nothing is left."""
        with self._changed:
            waiting, self._waiting = self._waiting, []
            self._runs += [loan.run for loan in waiting]
        for loan in waiting:
            self._begin(loan)
        for run in [run for run in self._runs if not _lives(run)]:
            with self._changed:
                self._runs.remove(run)
            try:
                self.ended(run)
            except Exception as error:  # whatever the host's own code raises
                # The page shows the run's warnings.
                said = f"the result could not be listed by the host: {error}"
                log.exception("%s: %s", run.name, said)
                with contextlib.suppress(DreamBoothError):  # the run's folder is gone
                    run.events.write("warning", message=said)
        with self._changed:
            if self._runs or self._waiting:
                return True
            self._thread = None  # under the lock: a later run starts another thread
            return False

    def _begin(self, loan: _Loan) -> None:
        if loan.begin is None:
            return
        try:
            loan.begin()
        except DreamBoothError as error:
            log.error("%s: %s", loan.run.name, error.line)
            loan.run.events.write("error", message=error.line, refused=True, **error.as_dict())

    def _release(self) -> None:
        chosen = self.host.settings()
        if chosen.release == "keep":
            return
        self.trouble = ""
        self.words = "its model leaves the GPU when the image in the making is done"
        try:
            self.words = self.host.release(chosen.release)
        except Exception:  # whatever the host's own code raises
            self.words = "its model could not be taken off the GPU"
            log.exception("%s; training goes on", self.words)

    def _guard(self) -> None:
        try:
            self.host.guard(self._gate)
        except Exception:  # whatever the host's own code raises
            log.exception("generating cannot be refused on this host; training goes on")

    def _restore(self) -> None:
        try:
            self.host.guard(None)
        except Exception:  # whatever the host's own code raises
            log.exception("the host still asks before it generates; restart it")
        try:
            self.host.restore()
        except Exception:  # whatever the host's own code raises
            self.trouble = "its model could not be brought back: select it anew"
            log.exception("the host: %s", self.trouble)
        finally:
            self.words = ""

    def _gate(self) -> None:
        """Refuses an image while runs go on, if the user wants that."""
        if self.host.settings().generate != "refuse":
            return
        with self._changed:
            names = [run.name for run in self._runs] or [loan.run.name for loan in self._waiting]
        if names:
            raise Busy(
                f"DreamBooth is training {names[0]!r} on the GPU. Wait, stop it in the DreamBooth "
                "tab, or allow generating meanwhile in Settings → DreamBooth."
            )


def _lives(run: RunFolder) -> bool:
    try:
        return status(run).state in ("running", "waiting")
    except DreamBoothError:  # the folder is gone
        return False
