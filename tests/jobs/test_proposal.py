"""What a resume wants to change, changes when its worker accepts it, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import Proposal, RunFolder, status
from dreambooth_core.worker import supervise


def contents(run: RunFolder) -> dict[str, bytes]:
    """The files that say what the run is; those that say what happened aside."""
    logs = {"events.jsonl", "control.jsonl", "worker.lock", "engine.log"}
    files = (p for p in run.path.rglob("*") if p.is_file() and p.name not in logs)
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in files}


def test_it_takes_its_place_when_it_is_accepted(run: RunFolder) -> None:
    seen: list[str] = []

    def work(folder: RunFolder, *, on_event: object = None, proposal: Proposal) -> None:
        seen.append(folder.config.read_text())
        proposal.accept(folder)
        seen.append(folder.config.read_text())
        folder.events.write("started")

    proposal = Proposal.make(run, {"config.yaml": "new", "asked.json": "{}"})
    assert supervise(run, runner=work, proposal=proposal) == 0
    assert seen == ["finish", "new"]
    assert contents(run) == {"config.yaml": b"new", "asked.json": b"{}"}


def test_two_at_once_do_not_meet(run: RunFolder) -> None:
    before = contents(run)
    first, second = (Proposal.make(run, {"config.yaml": text}) for text in ("1", "2"))
    with run.lock:
        with pytest.raises(UserError, match="has a worker already"):
            supervise(run, runner=lambda *_, **__: None, proposal=second)
        assert first.config.read_text() == "1"
    first.withdraw()
    assert contents(run) == before


@pytest.mark.parametrize("ended", ["done", "stopped"])
def test_a_refused_resume_leaves_the_run_what_it_was(run: RunFolder, ended: str) -> None:
    run.events.write("started", step=0, steps=3)
    run.events.write("finished", outcome=ended, results=[])
    before, state = contents(run), status(run).state

    def refuse(folder: RunFolder, *, on_event: object = None, proposal: Proposal) -> None:
        folder.events.write("warning", message="something about an image")
        raise UserError("rank was 4 and is now 8")

    proposal = Proposal.make(run, {"config.yaml": "new"})
    assert supervise(run, runner=refuse, proposal=proposal) == 2
    assert contents(run) == before
    now = status(run)
    assert (now.state, now.message) == (state, "rank was 4 and is now 8")


def test_a_first_start_that_is_refused_has_failed(run: RunFolder) -> None:
    def refuse(folder: RunFolder, *, on_event: object = None) -> None:
        raise UserError("no images")

    assert supervise(run, runner=refuse) == 2
    assert status(run).state == "failed"


def test_what_nobody_took_up_goes_after_a_day(run: RunFolder) -> None:
    old, recent = (Proposal.make(run, {"config.yaml": "x"}) for _ in range(2))
    os.utime(old.path, (time.time() - 90_000,) * 2)
    Proposal.make(run, {"config.yaml": "new"}).accept(run)
    assert not old.path.exists() and recent.path.exists()


def test_a_proposal_of_another_run_is_refused(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.create(tmp_path, "other")
    proposal = Proposal.make(other, {"config.yaml": "x"})
    with pytest.raises(UserError, match="not a proposal of this run"):
        supervise(run, proposal=proposal)
    proposal.withdraw()
    with pytest.raises(UserError, match="are gone"):
        supervise(other, proposal=proposal)
