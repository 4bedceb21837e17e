"""Stops install.py again and again, at every moment and beside a load, and counts how it ended.

    python -m tests.install.stops --times 200 --load 2

Half of the stops come while pip waits for a package index that never answers, half at a random
moment of a whole installation. An end is good if install.py says 130 and leaves nothing, or had
ended before; anything else is printed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.install.conftest import Clone, make_clone
from tests.install.wheelhouse import small_wheelhouse

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def main() -> int:
    """Runs the stops and prints the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--load", type=int, default=2, help="busy loops beside it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for number in SIGNALS:  # what runs in the background ignores some, and children inherit that
        signal.signal(number, signal.default_int_handler)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.load)]
    try:
        return repeat(args.times, random.Random(args.seed))
    finally:
        for process in busy:
            process.kill()


def repeat(times: int, chance: random.Random) -> int:
    """Stops ``times`` installations."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name, socket.socket() as mute:
        wheels = Path(name, "wheels")
        wheels.mkdir()
        small_wheelhouse(wheels)
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        begun = time.monotonic()
        whole = make_clone(Path(name, "whole"), wheels)
        assert whole.install("--torch", "none").returncode == 0
        seconds = time.monotonic() - begun
        for index in range(times):
            clone = make_clone(Path(name, str(index)), wheels)
            number = chance.choice(SIGNALS)
            if index % 2:
                ended = stop(clone, number, after=chance.uniform(0, 1.2 * seconds))
            else:
                ended = stop_while_pip_waits(clone, number, mute)
            counts[ended] += 1
            if ended.startswith("bad"):
                print(f"{index}: {number.name}: {ended}", flush=True)
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    for ended, count in sorted(counts.items()):
        print(f"{count:5} {ended}")
    return int(any(ended.startswith("bad") for ended in counts))


def stop_while_pip_waits(clone: Clone, number: signal.Signals, index: socket.socket) -> str:
    """How an installation ends that is stopped once pip has asked the index."""
    del clone.environ["PIP_NO_INDEX"], clone.environ["PIP_FIND_LINKS"]
    clone.environ["INDEX_URL"] = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
    process = clone.start("--torch", "none")
    with index.accept()[0]:
        os.killpg(process.pid, number)
        return judged(clone, process, "while pip waited")


def stop(clone: Clone, number: signal.Signals, after: float) -> str:
    """How an installation ends that is stopped after some seconds."""
    process = clone.start("--torch", "none")
    time.sleep(after)
    os.killpg(process.pid, number)
    return judged(clone, process, "at a random moment")


def judged(clone: Clone, process: subprocess.Popen[str], when: str) -> str:
    """How it ended, in words; ``bad: …`` where that is not as promised."""
    said, errors = process.communicate(timeout=300)
    left, code = clone.leftovers(), process.returncode
    if code == 130 and not left and "nothing half-made is left" in errors:
        return f"stopped {when}, nothing left"
    if code == 0 and left == ["engine"] and "Ready" in said:
        return "had ended before the stop"
    # Python itself says 1 where its own start was interrupted.
    interrupted = code == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    if (interrupted or code in (130, *(-n for n in SIGNALS))) and not left and not said:
        return "stopped before it began"
    return f"bad: {when}: exit code {code}, left {left}, {said[-200:]!r} {errors[-200:]!r}"


if __name__ == "__main__":
    sys.exit(main())
