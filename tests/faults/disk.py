"""``python -m tests.faults.disk``: a fault at every operation on the disk, and what it leaves.

python -m tests.faults.disk                    all, a table of outcomes, exit code 1 if one is bad
python -m tests.faults.disk merge train        only these scenes
python -m tests.faults.disk --share 20         20 faults of each scene
python -m tests.faults.disk --engine FOLDER    the engine of another checkout, to compare with

A scene is a command that replaces something older. It is run in a fork once without a fault, to
know what is new and how many operations it takes, and once more to take a fork at each operation
for each kind of fault (see failing_disk.py and disk_forks.py). After each, the next start clears
up, and each thing must be what it was or what it was to become, all of one age, with nothing
beside it; then the same command, without a fault, must end in what is new: a run resumes to the
bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.disk_forks import HANGS, Trial, link_tree, trials
from tests.faults.failing_disk import FAULTS, KILLED, FailingDisk

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GOOD = ("old", "new", "done")
BAD = ("mixture", "torn", "litter", "lost", "silent", "traceback")
KEPT = re.compile(r"(^|/)(\.ballast$|\.next-)")
"""The room that a run keeps for itself: gone when it ends, and used again when it resumes. And the
settings that a killed start brought along: another might wait for its turn with them, so they stay
for a day."""
CRASHED = 99


@dataclass(frozen=True)
class Scene:
    """A command, and what is there before and after it."""

    name: str
    prepare: Callable[[Path], Sequence[str]]
    """Fills an empty folder, also with what is older than the result; gives the arguments."""
    things: tuple[str, ...]
    """Files and folders that the command replaces, as one: all are old or all new."""
    separate: bool = False
    """The things are each for itself: some may be old and some new."""
    together: tuple[str, ...] = ()
    """Of things that are separate, those that are of one age."""
    digest: Callable[[Path], str] | None = None
    """What tells one age of a thing from the other; without it, every byte of every file."""
    anew: bool = False
    """Each fault is met by a command that began for it, not by a fork of one: torch.save does not
    survive being forked in its midst."""
    passing: tuple[str, ...] = ()
    """Those of the things that may stay old: what a step leaves that is not done again."""
    decoration: tuple[str, ...] = ()
    """Those whose failure is a warning, and no failure of the command."""
    again: Callable[[Path, Sequence[str]], Sequence[str]] | None = None
    """What is done after a fault, by what it left and the first arguments; by default the same."""


@dataclass
class Report:
    """How the faults of one scene ended."""

    scene: str
    operations: Counter[str] = field(default_factory=Counter)
    outcomes: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    """By kind of operation and fault."""
    bad: list[str] = field(default_factory=list)


def run(scene: Scene, root: Path, faults: Sequence[str], share: int | None = None) -> Report:
    """Tries each fault at each operation of a scene, or an even share of so many."""
    report = Report(scene.name)
    template = root / scene.name
    template.mkdir()
    arguments = _prepared(scene, template)
    old = _state(scene, template)
    place = root / "case"
    _copy(template, place)
    ended = _command(place, arguments, FailingDisk(place))
    if ended.code != 0:
        raise RuntimeError(f"{scene.name} does not work without a fault:\n{ended.said}")
    new = _state(scene, place)
    if any(text.startswith("torn") for text in (*old.values(), *new.values())) or old == new:
        raise RuntimeError(f"{scene.name} changes nothing: {old} {new}")
    known = {name: {old[name], new[name]} for name in scene.things}
    entries = _entries(template) | _entries(place)
    report.operations.update(ended.seen)
    chosen = dict.fromkeys(range(1, len(ended.seen) + 1), faults)
    if share is not None:
        count = len(ended.seen)
        chosen = {1 + n * count // share: [faults[n % len(faults)]] for n in range(share)}
    again: dict[str, tuple[str, str]] = {}
    output = root / "output.txt"
    _copy(template, place)
    forked = trials(
        place,
        lambda disk: os._exit(_child(place, lambda: _act(arguments, disk), root / "parent.txt")),
        lambda at: chosen.get(at, ()),
        output,
    )
    for trial in _anew(template, place, arguments, ended.seen, chosen) if scene.anew else forked:
        done = Ended(trial.code, output.read_text(encoding="utf-8", errors="replace"), [])
        outcome, told = _judge(scene, place, done, old, new, known, entries)
        if outcome in GOOD:
            # What is the same to the byte ends the same.
            state = "".join(
                f"{name}\0{_contents(place / name)}" for name in sorted(_entries(place))
            )
            if state not in again:
                again[state] = _judge_again(scene, place, arguments, old, new, entries)
            if again[state][0]:
                outcome, told = again[state]
        report.outcomes.setdefault((trial.kind, trial.fault), Counter())[outcome] += 1
        if outcome in BAD:
            where = f"{scene.name} {trial.fault} at {trial.at} ({trial.kind})"
            report.bad.append(f"{outcome}: {where}\n{told}")
    return report


def _anew(
    template: Path,
    place: Path,
    arguments: Sequence[str],
    seen: Sequence[str],
    chosen: Mapping[int, Sequence[str]],
) -> Iterator[Trial]:
    """The same trials as :func:`trials`, each from the command's beginning."""
    for at, faults in chosen.items():
        for fault in faults:
            _copy(template, place)
            disk = FailingDisk(place, at, fault)
            done = _command(place, arguments, disk, "output.txt")
            if done.code == 0 and len(done.seen) < at:
                continue  # it ended before: messages that are told by the clock were fewer
            yield Trial(at, seen[at - 1], fault, done.code)


def _contents(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)
    return digest_of(path) if path.is_file() else ""


@dataclass
class Ended:
    """How a command's process ended."""

    code: int
    said: str
    seen: list[str]


def _judge(
    scene: Scene,
    place: Path,
    done: Ended,
    old: dict[str, str],
    new: dict[str, str],
    known: dict[str, set[str]],
    entries: set[str],
) -> tuple[str, str]:
    """The state after a fault and the next start."""
    said = done.said[-1500:]
    if "Traceback (most recent call last)" in done.said or done.code not in (0, 1, 2, KILLED):
        return "traceback", said
    _clear_up(place)
    found = _state(scene, place)
    torn = [name for name in scene.things if found[name] not in known[name]]
    if torn:
        states = [(name, found[name], known[name]) for name in torn]
        return "torn", f"{states}\n{said}"
    whole = scene.together if scene.separate else scene.things
    ages = {n: "old" if found[n] == old[n] else "new" for n in whole if old[n] != new[n]}
    if len(set(ages.values())) > 1:
        return "mixture", f"{ages}\n{said}"
    more = {name for name in _entries(place) - entries if _is_litter(name)}
    if more := {name for name in more if not KEPT.search(name)}:
        return "litter", f"{sorted(more)[:4]}\n{said}"
    if done.code == 0:
        missing = [n for n in found if found[n] != new[n] and n not in scene.decoration]
        return ("silent", f"{missing}\n{said}") if missing else ("done", "")
    return ("new", "") if found == new else ("old", "")


def _judge_again(
    scene: Scene,
    place: Path,
    arguments: Sequence[str],
    old: dict[str, str],
    new: dict[str, str],
    entries: set[str],
) -> tuple[str, str]:
    """What is wrong after the same command without a fault; nothing is, if it is empty."""
    if scene.again is not None:
        arguments = scene.again(place, arguments)
    again = _command(place, arguments, FailingDisk(place))
    if again.code != 0:
        return "lost", again.said[-1500:]
    found = _state(scene, place)
    differ = [name for name in found if found[name] != new[name]]
    may_stay = {*scene.passing, *scene.decoration}
    if any(name not in may_stay or found[name] != old[name] for name in differ):
        return "lost", f"{differ} are not what they are without a fault"
    more = {name for name in _entries(place) - entries if _is_litter(name)}
    if more := {name for name in more if ".next-" not in name}:
        return "litter", f"{sorted(more)[:4]} at the very end"
    return "", ""


def _is_litter(name: str) -> bool:
    return any(
        part.startswith(".") or part.endswith((".part", ".tmp")) for part in Path(name).parts
    )


def _clear_up(place: Path) -> None:
    """What the next start does first, in every folder."""
    with contextlib.suppress(ImportError):  # an older engine
        from dreambooth_core.disk import tidy

        for folder, _, _ in os.walk(place):
            tidy(folder)


def _state(scene: Scene, place: Path) -> dict[str, str]:
    digest = scene.digest or digest_of
    found = {}
    for name in scene.things:
        path = place / name
        try:
            found[name] = digest(path) if path.exists() else "absent"
        except Exception as error:  # noqa: BLE001  whatever is wrong with it, it is
            found[name] = f"torn: {error}"
    return found


def digest_of(path: Path) -> str:
    """A hash of a file, or of all files of a folder and their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(once(_sha256, file).encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def once(digest: Callable[[Path], str], file: Path) -> str:
    """The digest of a file, from memory if this very file was seen unchanged before."""
    facts = file.stat()
    key = (digest, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = digest(file)
    return _DIGESTS[key]


_DIGESTS: dict[tuple[object, int, int, int], str] = {}


def _entries(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


def _copy(template: Path, place: Path) -> None:
    """The same paths each time: some results name them."""
    shutil.rmtree(place, ignore_errors=True)
    link_tree(template, place)


def _act(arguments: Sequence[str], disk: FailingDisk) -> list[str]:
    """A command line of ``dreambooth`` on a disk that fails, in a fork; the kinds of operation."""
    from dreambooth_core.commands.main import main

    _hurry()
    disk.install()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    if code:
        os._exit(code)
    return disk.seen


def _command(
    place: Path, arguments: Sequence[str], disk: FailingDisk, said: str = "again.txt"
) -> Ended:
    """The same in a fork of its own; ``said`` names the file for what it says."""
    output = place.parent / said
    code, value = _fork(place, lambda: _act(arguments, disk), output)
    text = output.read_text(encoding="utf-8", errors="replace")
    return Ended(code, text, value if isinstance(value, list) else [])


def _hurry() -> None:
    """Runs wait for room on a full disk; here they need not wait long."""
    with contextlib.suppress(ImportError):  # an older engine
        saving = importlib.import_module("dreambooth_core.trainer.saving")
        for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "POLL"):
            setattr(saving, name, 0.01)


def _prepared(scene: Scene, template: Path) -> Sequence[str]:
    """The arguments. What was imported on the way is imported here, so that no fork has to."""
    output = template.parent / "prepared.txt"
    code, value = _fork(template, lambda: [*scene.prepare(template), *sys.modules], output)
    if code or not isinstance(value, list):
        said = output.read_text(encoding="utf-8")
        raise RuntimeError(f"{scene.name} cannot be prepared:\n{said}")
    arguments, modules = value[: value.index("sys")], value[value.index("sys") :]
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return arguments


def _fork(place: Path, act: Callable[[], object], output: Path) -> tuple[int, object]:
    """The exit code of ``act`` in a process of its own, and what it returned."""
    answer = output.with_suffix(".json")
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_child(place, act, output, answer))
    _, status = os.waitpid(pid, 0)
    value = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None
    return os.waitstatus_to_exitcode(status), value


def _child(place: Path, act: Callable[[], object], output: Path, answer: Path | None = None) -> int:
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(stream, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(place)
    signal.alarm(HANGS if answer else 0)
    try:
        value = act()
        if answer:
            answer.write_text(json.dumps(value if isinstance(value, (list, tuple)) else []))
        code = 0
    except BaseException:  # noqa: BLE001  every one is counted
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.disk")
    parser.add_argument("scenes", nargs="*", help="only these")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this, or these")
    parser.add_argument("--share", type=int, metavar="N", help="only N faults of each scene")
    parser.add_argument("--engine", type=Path, help="another checkout, whose engine is tried")
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    args = parser.parse_args()
    if args.engine:
        sys.path.insert(0, str(args.engine.resolve()))

    from tests.faults import runner
    from tests.faults.disk_scenes import scenes

    runner.preload()
    reports = []
    # In memory, where the system has that: a real disk's flushes take most of the time.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="disk-", dir=memory) as root:
        for scene in scenes():
            if not args.scenes or scene.name in args.scenes:
                faults = args.fault or FAULTS
                reports.append(run(scene, Path(root), faults, args.share))
                if not args.quiet:
                    print("\n".join(f"--- {text}" for text in reports[-1].bad), flush=True)
                    print(table(reports[-1:]).splitlines()[2], flush=True)
    print(table(reports))
    return 1 if any(report.bad for report in reports) else 0


def table(reports: Sequence[Report]) -> str:
    """The counts by scene, and by operation and fault over all scenes."""
    kinds = [*GOOD, *BAD]
    lines = [f"| scene | operations | faults | {' | '.join(kinds)} |", "|---" * 12 + "|"]
    by_kind: dict[str, Counter[str]] = {}
    for report in reports:
        total = sum(report.outcomes.values(), Counter[str]())
        lines.append(_row(report.scene, str(report.operations.total()), total, kinds))
        for (kind, fault), found in report.outcomes.items():
            by_kind.setdefault(f"{kind}, {fault}", Counter()).update(found)
    lines += ["", f"| operation and fault | | faults | {' | '.join(kinds)} |", "|---" * 12 + "|"]
    lines += [_row(name, "", found, kinds) for name, found in sorted(by_kind.items())]
    lines.append(_row("all", "", sum(by_kind.values(), Counter[str]()), kinds))
    return "\n".join(lines)


def _row(name: str, more: str, found: Counter[str], kinds: Sequence[str]) -> str:
    numbers = " | ".join(str(found[kind]) for kind in kinds)
    return f"| {name} | {more} | {found.total()} | {numbers} |"


if __name__ == "__main__":
    sys.exit(main())
