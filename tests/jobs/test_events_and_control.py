"""The two logs: appended in whole lines, read in whole lines, whatever happens between."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.jobs import VERBS, RunFolder
from dreambooth_core.jobs.control import Control
from dreambooth_core.jobs.events import EventLog, read_events


def test_events_come_back_in_order_with_time_and_kind(run: RunFolder) -> None:
    first = run.events.write("started", steps=3, step=0)
    run.events.write("progress", step=1, loss=float("nan"), name="é\n")
    events, offset = run.events.read()
    assert events[0] == first and first["kind"] == "started" and first["time"] > 1e9
    assert (events[1]["loss"], events[1]["name"]) == (None, "é\n")
    assert offset == run.events.size() == run.events_file.stat().st_size
    assert run.events.read(offset) == ([], offset)
    assert list(run.events) == events
    with pytest.raises(ValueError, match="unknown kind of event 'done'"):
        run.events.write("done")


def test_a_half_written_line_waits(run: RunFolder) -> None:
    run.events.write("started")
    events, offset = run.events.read()
    with run.events_file.open("ab") as file:
        file.write(b'{"kind": "prog')
        file.flush()
        assert run.events.read(offset) == ([], offset)
        file.write(b'ress", "step": 1}\n')
    events, end = run.events.read(offset)
    assert events == [{"kind": "progress", "step": 1}] and end > offset


def test_a_line_cut_short_by_a_kill_spoils_itself_alone(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    run.events.write("started")
    with run.events_file.open("ab") as file:
        file.write(b'{"kind": "progress", "lo')
    run.events.write("finished")
    assert [event["kind"] for event in run.events] == ["started", "finished"]
    assert "not a JSON object was skipped" in caplog.text


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 200))
def test_reading_garbage_never_fails(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], offset: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    path.write_bytes(b"\n".join([*lines, b'{"kind": "saved"}', b""]))
    events, end = read_events(path)
    assert events[-1] == {"kind": "saved"}
    assert end == path.stat().st_size
    assert read_events(path, offset)[1] == end


def test_a_log_that_was_replaced_is_read_from_its_beginning(run: RunFolder) -> None:
    run.events.write("started", note="long " * 20)
    _, offset = run.events.read()
    run.events_file.write_text('{"kind": "started"}\n')
    assert run.events.read(offset)[0] == [{"kind": "started"}]
    assert read_events(run.path / "none.jsonl", 7) == ([], 0)


def test_threads_do_not_mix_their_lines(run: RunFolder) -> None:
    log = EventLog(run.events_file)

    def write() -> None:
        for step in range(50):
            log.write("progress", step=step, text="x" * 500)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(log)) == 200


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="could not be written"):
        EventLog(tmp_path / "gone" / "events.jsonl").write("started")


def test_only_new_requests_are_handed_out(run: RunFolder) -> None:
    control = run.control
    assert control.poll() == []
    for verb in VERBS:
        run.control.request(verb)
    assert control.poll() == list(VERBS)
    assert control.poll() == []
    run.control.request("save")
    assert control.poll() == ["save"]


def test_what_was_asked_before_a_start_is_history(run: RunFolder) -> None:
    run.control.request("stop")
    run.control.mark_exited(run.control.mark_start(0), 130)
    run.control.mark_start(0)
    assert run.control.poll() == []
    run.control.request("stop_after_step")  # while the worker still comes up
    assert run.control.poll() == ["stop_after_step"]


def test_unknown_and_broken_requests_are_ignored(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["garbage", json.dumps({"verb": "dance"}), "[1]", '{"verb": ["stop"]}', "{}"]
    run.control_file.write_text("\n".join([*lines, json.dumps({"verb": "stop"}), '{"verb": "sa']))
    with caplog.at_level(logging.WARNING):
        control = run.control
        assert control.poll() == ["stop"]
    assert "unknown command 'dance' was ignored" in caplog.text
    run.control.request("sample")  # closes the half-written line
    assert control.poll() == ["sample"]


def test_a_verb_that_is_none_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown command 'dance'\. Use one of sample, save, stop"):
        run.control.request("dance")
    with pytest.raises(UserError, match="cannot ask the run"):
        Control(tmp_path / "gone" / "control.jsonl").request("stop")
