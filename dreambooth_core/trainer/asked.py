"""What the user asks of a run while it is alive, and whether its folder is still there."""

from __future__ import annotations

from dreambooth_core.errors import RunGone
from dreambooth_core.jobs import STOPS, RunFolder


class Asked:
    """Requests that wait until the run can answer them. Every process of a run has one."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._control = folder.control
        self._home = folder.identity()
        self._verbs: list[str] = []

    def stops(self) -> bool:
        """Whether the run shall end in the midst of what it does; the request stays for
        :meth:`take`.

        Raises:
            RunGone: the run's folder is not there any more.
        """
        self.look()
        self._verbs += self._control.poll()
        return not STOPS.isdisjoint(self._verbs)

    def take(self) -> list[str]:
        """What was asked since the last call.

        Raises:
            RunGone: the run's folder is not there any more.
        """
        self.stops()
        verbs, self._verbs = self._verbs, []
        return verbs

    def look(self) -> None:
        """Raises ``RunGone`` if the folder was deleted, or another is in its place."""
        if self._folder.identity() != self._home:
            raise RunGone(
                "the run's folder was deleted while it was at work; it stops",
                where=self._folder.path,
            )
