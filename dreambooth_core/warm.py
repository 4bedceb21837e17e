"""``python -m dreambooth_core.warm``: commands run in a process that stays warm.

The other end is :mod:`dreambooth_core.hosting.warm`. JSON lines come in by the standard input::

    {"id": 1, "argv": ["merge", "a.safetensors", "b.safetensors", "--out", "c.safetensors"]}
    {"cancel": 1}

and go out by the standard output::

    {"id": 1, "accepted": true}
    {"id": 1, "progress": {"message": "…"}}
    {"id": 1, "code": 0, "answer": {…}}
    {"id": 1, "code": 2, "error": {"what": …, "where": …, "do": …, "line": …}}

The process leaves when nobody asked for a while, and when the pipe closes.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import gc
import io
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from dreambooth_core.errors import Stopped

IDLE = 300.0
"""Seconds without a request after which the process leaves."""

PATIENCE = 5.0
"""Seconds that a command gets to stop when the other end is gone."""


class Server:
    """Runs one command after another, in the thread that calls :meth:`serve`."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], *, idle: float) -> None:
        self._source = source
        self._sink = sink
        self._idle = idle
        self._requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._writing = threading.Lock()
        self._running: int | None = None
        self._cancelled: set[int] = set()
        self._closed = False

    def serve(self) -> None:
        """Answers until the input ends or nobody asks any more."""
        with contextlib.suppress(ValueError):  # not the main thread: a cancel comes to nothing
            signal.signal(signal.SIGINT, self._interrupted)
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        while True:
            try:
                request = self._requests.get(timeout=self._idle)
            except queue.Empty:
                return
            if request is None:
                return
            self._send(id=request["id"], accepted=True)
            self._send(id=request["id"], **self._answer(request))
            gc.collect()

    def _listen(self) -> None:
        """Reads requests. A closed pipe ends the process, whatever it is doing."""
        for line in self._source:
            request = json.loads(line)
            if "cancel" not in request:
                self._requests.put(request)
                continue
            self._cancelled.add(request["cancel"])
            if request["cancel"] == self._running:
                _thread.interrupt_main()
        self._closed = True
        self._requests.put(None)
        if self._running is not None:
            _thread.interrupt_main()
        time.sleep(PATIENCE)
        os._exit(1)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._running is not None:  # a request that came too late is no request
            raise KeyboardInterrupt

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs a command; what it prints is the answer, what it tells a person the progress."""
        out = io.StringIO()
        told = _Lines(lambda line: self._send(id=request["id"], progress={"message": line}))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
                self._running = request["id"]
                if self._closed or self._running in self._cancelled:
                    raise KeyboardInterrupt
                code = _commands(request["argv"])
        except KeyboardInterrupt:
            code = Stopped.exit_code
        except SystemExit as leaving:  # argparse, after it told why
            code = leaving.code if isinstance(leaving.code, int) else 1
        except Exception as error:  # noqa: BLE001 (the other end raises it)
            text = " ".join(str(error).split())[:300]
            what = f"unexpected {type(error).__name__}: {text}"
            return {"code": 1, "error": {"what": what}, "details": traceback.format_exc()}
        finally:
            self._running = None
        answer = parse(out.getvalue())
        if code == 0:
            return {"code": 0, "answer": answer}
        found = answer.get("error") or {"what": told.last.rpartition("error: ")[2] or "failed"}
        return {"code": code, "error": found}

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._writing, contextlib.suppress(OSError):  # a closed pipe: the listener knows
            self._sink.write(data)
            self._sink.flush()


def parse(text: str) -> dict[str, Any]:
    """What a command printed, as an object: JSON, or ``{"text": …}`` where it was none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"text": text}
    return value if isinstance(value, dict) else {"items": value}


class _Lines(io.TextIOBase):
    """A text stream that hands on whole lines, and remembers the last."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self.last = ""
        self._send = send
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in filter(None, map(str.strip, lines)):
            self.last = line
            self._send(line)
        return len(text)


def _commands(argv: Sequence[str]) -> int:
    from dreambooth_core.commands.main import main as run  # late: the first request pays for it

    return run(argv)


def _pipes() -> tuple[IO[bytes], IO[bytes]]:
    """This process's pipes, taken away from whatever a library may read or print.

    On Windows a library that only looks at a standard input that a thread reads would hang.
    """
    source, sink = os.dup(0), os.dup(1)
    with Path(os.devnull).open("r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def main(argv: Sequence[str] | None = None) -> int:
    """The process's command line."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth_core.warm")
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds after which to leave")
    args = parser.parse_args(argv)
    source, sink = _pipes()
    Server(source, sink, idle=args.idle).serve()
    sys.stderr.flush()
    os._exit(0)  # the listener may still be reading, and libraries' threads are of no use


if __name__ == "__main__":
    main()
