"""The routes under both hosts' fastapi and pydantic, asked as a script would."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.engine_environment import this_python
from helpers.gradio import HOSTS, python_of
from PIL import Image

ROOT = Path(__file__).parents[3]
V1 = "/dreambooth/v1"

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module", params=HOSTS)
def python(request: pytest.FixtureRequest) -> Path:
    """A Python with fastapi 0.94 and pydantic 1.10, or 0.104 and 2.8."""
    return python_of(request.param)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The host's data: a picture, a run that has ended, a model."""
    made = tmp_path / "webui"
    (made / "outputs" / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(made / "outputs" / "pictures" / "a.png")
    run = made / "outputs" / "dreambooth" / "runs" / "dog"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("run: {steps: 7}\n")
    events = [
        {"time": 1.0, "kind": "started", "step": 0, "steps": 7},
        {"time": 2.0, "kind": "progress", "step": 7, "steps": 7, "loss": 0.5},
        {"time": 3.0, "kind": "finished", "outcome": "done"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    Image.new("RGB", (8, 8)).save(run / "samples" / "a.png")
    return made


@pytest.fixture
def ask(python: Path, data: Path, tmp_path: Path) -> Ask:
    """Asks one thing after the other; returns ``[status, answer]`` of each."""

    def asked(*requests: Any, **environment: str) -> list[Any]:
        variables = os.environ | {
            "STAND_IN_DATA": str(data),
            "DREAMBOOTH_ENV": str(this_python(tmp_path / "engine")),
            **environment,
        }
        script = Path(__file__).with_name("conversation.py")
        done = subprocess.run(
            [str(python), str(script), str(ROOT), json.dumps(requests)],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "ANSWERS" in done.stdout, done.stderr
        found: list[Any] = json.loads(done.stdout.rpartition("ANSWERS")[2])
        return found

    return asked


def basic(pair: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def test_what_can_be_asked(ask: Ask, data: Path) -> None:
    runs = data / "outputs" / "dreambooth" / "runs"
    (
        environment,
        schema,
        pictures,
        listed,
        status,
        events,
        values,
        picture,
        tools,
        openapi,
        saved,
        preset,
        presets,
    ) = ask(
        ["GET", f"{V1}/environment", None],
        ["GET", f"{V1}/schema", None],
        ["GET", f"{V1}/pictures?folder=outputs/pictures", None],
        ["GET", f"{V1}/runs", None],
        ["GET", f"{V1}/status/dog", None],
        ["GET", f"{V1}/events/dog?offset=0", None],
        ["GET", f"{V1}/runs/dog/values", None],
        ["GET", f"{V1}/runs/dog/picture?path=samples/a.png", None],
        ["GET", f"{V1}/tools", None],
        ["GET", "/openapi.json", None],
        ["GET", f"{V1}/runs/dog/saved", None],
        ["PUT", f"{V1}/presets/mine", {"values": {"run.seed": 3}}],
        ["GET", f"{V1}/presets/mine", None],
    )
    assert environment[1]["ready"] is True
    assert schema[1]["children"][0]["key"] == "base"
    assert [one["name"] for one in pictures[1]["taken"]] == ["a.png"]
    assert [one["name"] for one in listed[1]["runs"]] == ["dog"]
    assert (status[1]["state"], status[1]["step"], status[1]["loss"]) == ("finished", 7, 0.5)
    assert [event["kind"] for event in events[1]["events"]] == ["started", "progress", "finished"]
    assert events[1]["offset"] == (runs / "dog" / "events.jsonl").stat().st_size
    assert values[1] == {"values": {"run.steps": 7}}
    assert picture[0] == 200 and picture[1] > 50
    assert {"merge", "convert", "inspect"} <= set(tools[1])
    paths = openapi[1]["paths"]
    for path in ("start", "status/{run}", "events/{run}", "command/{run}", "merge", "convert"):
        assert f"{V1}/{path}" in paths
    assert "--method" not in str(paths[f"{V1}/merge"]) and "how to merge" in str(paths)
    assert "dotted keys" in str(openapi[1]["components"])
    assert saved[1] == {"saved": []}
    assert preset[1]["kind"] == "own" and presets[1] == {"values": {"run.seed": 3}}


def test_errors_are_told_in_their_parts(ask: Ask) -> None:
    unknown, wrong, tool, verb, body, deleted = ask(
        ["GET", f"{V1}/status/cat", None],
        ["POST", f"{V1}/start", {"values": {"run.steps": 0}}],
        ["POST", f"{V1}/merge", {"values": {"adapters": []}}],
        ["POST", f"{V1}/command/dog", {"verb": "jump"}],
        ["POST", f"{V1}/command/dog", {}],
        ["DELETE", f"{V1}/tasks/none", None],
    )
    assert (unknown[0], unknown[1]["error"]["what"]) == (400, "there is no run named 'cat'")
    assert wrong[0] == 400 and "0 is too small" in wrong[1]["error"]["line"]
    assert tool[0] == verb[0] == deleted[0] == 400
    assert body[0] == 422


ELSEWHERE: list[list[Any]] = [
    ["GET", f"{V1}/pictures?folder=/etc", None],
    ["GET", f"{V1}/pictures?folder=../../../etc", None],
    ["PUT", f"{V1}/caption", {"picture": "/etc/passwd", "text": "x"}],
    ["POST", f"{V1}/inspect", {"file": "/etc/passwd"}],
    ["GET", f"{V1}/base?name=/etc/passwd", None],
    ["GET", f"{V1}/runs/dog/picture?path=../../../../x.png", None],
    ["GET", f"{V1}/runs/dog/picture?path=config.yaml", None],
    ["GET", f"{V1}/status/..", None],
    ["GET", f"{V1}/presets/..%2F..%2Fsecret", None],
    ["POST", f"{V1}/start", {"values": {"concepts[0].images": "/etc"}}],
    ["POST", f"{V1}/start", {"values": {"run.seed": 1}, "presets": ["/etc/passwd"]}],
    ["POST", f"{V1}/convert", {"values": {"source": "/etc/passwd", "target": "x"}}],
    ["POST", f"{V1}/merge", {"values": {"adapters": [{"file": "/etc/x"}], "out": "x"}}],
    ["POST", f"{V1}/resize", {"values": {"source": "outputs/pictures/a.png", "target": "/tmp/x"}}],
    ["DELETE", f"{V1}/runs/..", None],
]


def test_nothing_elsewhere_is_touched(ask: Ask, data: Path) -> None:
    answers = ask(*ELSEWHERE)
    for request, (status, told) in zip(ELSEWHERE, answers, strict=True):
        assert status in (400, 404, 405), (request, told)
    assert sorted(path.name for path in (data / "outputs" / "dreambooth" / "runs").iterdir()) == [
        "dog"
    ]


def test_what_a_preset_hides_is_found_too(ask: Ask) -> None:
    kept, started = ask(
        ["PUT", f"{V1}/presets/sly", {"values": {"concepts[0].images": "/etc"}}],
        ["POST", f"{V1}/start", {"values": {}, "presets": ["sly"]}],
    )
    assert kept[0] == 200
    assert started[0] == 400 and "not in a folder" in started[1]["error"]["line"]


def test_another_page_cannot_make_a_browser_write(ask: Ask) -> None:
    """A form of another page sends no JSON without asking first."""
    plain = {"content-type": "text/plain"}
    answers = ask(
        ["POST", f"{V1}/start", '{"values": {}}', dict(plain)],
        ["POST", f"{V1}/runs/dog/resume", "{}", dict(plain)],
        ["POST", f"{V1}/environment/build", "", dict(plain)],
    )
    assert [status for status, _ in answers] == [422, 422, 422]


def test_the_hosts_own_passwords(ask: Ask) -> None:
    path = ["GET", f"{V1}/runs", None]
    cookie = {"cookie": "access-token=cookie-of-somebody"}
    later = {"cookie": "access-token-xyz=cookie-of-somebody"}
    tries = [{}, basic("me:a:b"), basic("me:no"), basic("you:b"), cookie, later, {"cookie": "a=b"}]
    requests = [[*path, headers] for headers in tries]

    def codes(**environment: str) -> list[int]:
        return [status for status, _ in ask(*requests, **environment)]

    assert codes() == [200] * 7
    api = codes(STAND_IN_API_AUTH="me:a:b")
    assert api == [401, 200, 401, 401, 401, 401, 401]
    page = codes(STAND_IN_GRADIO_AUTH="you:b")
    assert page == [401, 401, 401, 200, 200, 200, 401]
    both = codes(STAND_IN_API_AUTH="me:a:b", STAND_IN_GRADIO_AUTH="you:b")
    assert both == [401, 200, 401, 200, 200, 200, 401]


def test_writing_needs_the_password_too(ask: Ask) -> None:
    answers = ask(
        ["POST", f"{V1}/start", {"values": {}}],
        ["POST", f"{V1}/merge", {"values": {}}],
        ["DELETE", f"{V1}/runs/dog", None],
        ["PUT", f"{V1}/presets/x", {"values": {}}],
        STAND_IN_API_AUTH="me:a",
    )
    assert [status for status, _ in answers] == [401] * 4
