"""The routes under both hosts' fastapi and pydantic, asked as a script would."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
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
def process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    """A Python with fastapi 0.94 and pydantic 1.10, or 0.104 and 2.8, that converses."""
    script = Path(__file__).with_name("conversation.py")
    engine = this_python(tmp_path_factory.mktemp("engine"))
    with (tmp_path_factory.mktemp("log") / "stderr").open("w+") as said:
        made = subprocess.Popen(
            [str(python_of(request.param)), str(script), str(ROOT)],
            env=os.environ | {"DREAMBOOTH_ENV": str(engine)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        yield made
        made.communicate(timeout=60)


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
    (run / "evaluation.html").write_text("<p>likeness</p>")
    return made


@pytest.fixture
def ask(process: subprocess.Popen[str], data: Path) -> Ask:
    """Asks one thing after the other; returns ``[status, answer]`` of each."""

    def asked(*requests: Any, **environment: str) -> list[Any]:
        variables = {"STAND_IN_DATA": str(data), **environment}
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"requests": requests, "environment": variables}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("ANSWERS"):
                found: list[Any] = json.loads(line[len("ANSWERS") :])
                return found
        raise AssertionError("the conversation ended")

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
        evaluation,
        crop,
        suggested,
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
        ["GET", f"{V1}/runs/dog/evaluation", None],
        ["PUT", f"{V1}/crop", {"picture": "outputs/pictures/a.png", "sides": [0, 0, 0.5, 1]}],
        ["GET", f"{V1}/crop?picture=outputs/pictures/a.png", None],
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
    values = openapi[1]["components"]["schemas"]["MergeValues"]["properties"]
    assert "how to merge" in values["method"]["description"] and "te_weight" in values
    assert "dotted keys" in str(openapi[1]["components"])
    assert saved[1] == {"saved": []}
    assert evaluation[0] == 200
    assert (crop[0], suggested) == (200, [200, {"sides": None}])
    assert (data / "outputs" / "pictures" / "a.png.crop.json").is_file()
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
    assert (tool[0], verb[0], deleted[0]) == (422, 400, 400)
    assert body[0] == 422 and body[1]["error"]["where"] == "body.verb"


ELSEWHERE: list[list[Any]] = [
    ["GET", f"{V1}/pictures?folder=/etc", None],
    ["GET", f"{V1}/pictures?folder=../../../etc", None],
    ["PUT", f"{V1}/caption", {"picture": "/etc/passwd", "text": "x"}],
    ["PUT", f"{V1}/crop", {"picture": "/etc/passwd", "sides": None}],
    ["GET", f"{V1}/crop?picture=/etc/passwd", None],
    ["POST", f"{V1}/captions", {"folder": "/etc"}],
    ["POST", f"{V1}/captions", {"folder": "outputs/pictures", "model": "/etc"}],
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
    ["GET", f"{V1}/runs/../evaluation", None],
    ["POST", f"{V1}/runs/none/evaluate", {}],
    ["POST", f"{V1}/runs/dog/evaluate", {"kind": "dead"}],
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


START = ["POST", f"{V1}/start", {"values": {"run.steps": 0}}]
"""Refused for its value, once it is let in."""


def codes(ask: Ask, headers: list[dict[str, str]], **environment: str) -> list[int]:
    """How a request is answered with each of the headers."""
    answers = ask(*([*START, dict(each)] for each in headers), **environment)
    for status, told in answers:
        assert set(told["error"]) == {"what", "where", "do", "line"}, (status, told)
    return [status for status, _ in answers]


def test_the_token(ask: Ask, data: Path) -> None:
    no = {"x-dreambooth-token": ""}
    assert codes(
        ask,
        [
            no,
            {"x-dreambooth-token": "wrong"},
            {"x-dreambooth-token": "wörong".encode().decode("latin-1")},
            {**no, "authorization": "Bearer TOKEN"},
            {**no, "authorization": "token TOKEN"},
            {**no, "authorization": "Basic TOKEN"},
            {},
        ],
    ) == [401, 401, 401, 400, 400, 401, 400]
    file = data / "outputs" / "dreambooth" / ".api-token"
    first = file.read_text()
    assert len(first) > 40
    if os.name != "nt":
        assert file.stat().st_mode & 0o777 == 0o600
    assert ask(["GET", f"{V1}/runs", None, no])[0][0] == 401
    assert file.read_text() != first  # new at each start
    own = {"DREAMBOOTH_API_TOKEN": "a token of my own"}
    given = {"x-dreambooth-token": own["DREAMBOOTH_API_TOKEN"]}
    assert codes(ask, [given, {"x-dreambooth-token": "short"}], **own) == [400, 401]


def test_only_json_is_taken(ask: Ask) -> None:
    """What a form or an untyped Blob of another page sends needs no asking first."""
    kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "NONE"]
    wrong = [{"content-type": kind} for kind in [*kinds, "application/jsonp", "a/b+json"]]
    right = {"content-type": "Application/JSON; charset=utf-8"}
    assert codes(ask, [*wrong, right]) == [415] * 6 + [400]
    bodies = ("", "{", "[NaN]", "null", "5", '{"values": {}, "values": {}}', "[" * 5000)
    places = (["POST", f"{V1}/start"], ["PUT", f"{V1}/presets/x"])
    requests = [[*place, body] for body in bodies for place in places]
    for request, (status, told) in zip(requests, ask(*requests), strict=True):
        assert status in (400, 422) and told["error"]["line"], request


def test_other_web_pages(ask: Ask) -> None:
    here = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    own = [here, {"sec-fetch-site": "none"}]
    foreign = [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"origin": "null"},
        {"origin": "file://"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {**here, "sec-fetch-site": "cross-site"},
    ]
    assert codes(ask, [*own, *foreign]) == [400] * 2 + [403] * len(foreign)
    allowed = [{"origin": "https://evil.example", "sec-fetch-site": "cross-site"}]
    assert codes(ask, allowed, STAND_IN_CORS="https://evil.example") == [400]


def test_names_that_are_not_the_hosts(ask: Ask) -> None:
    """A page of evil.example whose name is suddenly 127.0.0.1 is its own origin."""
    local = ["localhost:7860", "LOCALHOST", "127.0.0.1", "127.3.2.1:80", "[::1]:7860"]
    other = ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.nip.io"]
    broken = ["user@localhost", "localhost:x", "[::1", "", "localhost/x", "a b"]
    refused = [*other, "192.168.0.9", *filter(None, broken)]
    found = codes(ask, [{"host": name} for name in [*local, *refused]])
    assert found == [400] * len(local) + [403] * len(refused)
    names = [{"host": "192.168.0.9:7860"}, {"host": "evil.example"}]
    assert codes(ask, names, STAND_IN_LISTEN="1") == [400, 403]
    proxied = {"host": "sd.example.com", "origin": "https://sd.example.com"}
    rewritten = {"host": "127.0.0.1:7860", "origin": "https://sd.example.com"}
    assert codes(ask, [proxied, rewritten], STAND_IN_HOST="a.b, SD.example.com") == [400, 400]


def test_the_word_of_the_page(ask: Ask) -> None:
    """It needs no token, but the login of the page; a host for others is open by any name."""

    def found(*headers: dict[str, str], **environment: str) -> list[int]:
        no = {"x-dreambooth-token": ""}
        asked = [["GET", "/dreambooth/page", None, no | each] for each in headers]
        return [status for status, _ in ask(*asked, **environment)]

    rebound, page = {"host": "evil.example"}, {"origin": "https://evil.example"}
    cookie = {"cookie": "access-token=cookie-of-somebody"}
    assert found({}, rebound, page) == [200, 403, 403]
    assert found({}, rebound, page, STAND_IN_LISTEN="1") == [200, 200, 403]
    assert found({}, rebound, STAND_IN_HOST="evil.example") == [200, 200]
    assert found({}, STAND_IN_API_AUTH="me:a:b") == [200]
    assert found({}, cookie, STAND_IN_GRADIO_AUTH="you:b") == [401, 200]


def test_bodies_are_limited_before_they_are_read(ask: Ask) -> None:
    large = json.dumps({"values": {"x": "y" * 1_000_001}})
    no = {"x-dreambooth-token": ""}
    told, announced, secret, query = ask(
        ["POST", f"{V1}/start", large],
        ["POST", f"{V1}/start", "{}", {"content-length": "300000000"}],
        ["POST", f"{V1}/start", "{}", {"content-length": "300000000", **no}],
        ["GET", f"{V1}/pictures?folder={'x' * 9000}", None],
    )
    assert (told[0], announced[0], secret[0], query[0]) == (413, 413, 413, 414)
    assert "bytes" in told[1]["error"]["what"]


def test_there_are_no_other_routes(ask: Ask) -> None:
    answers = ask(
        ["GET", f"{V1}/nothing", None],
        ["PATCH", f"{V1}/start", {}],
        ["GET", f"{V1}/start", None],
        ["OPTIONS", f"{V1}/start", None],
        ["GET", f"{V1}/runs/", None],
        ["GET", f"{V1}/nothing", None, {"x-dreambooth-token": ""}],
    )
    assert [status for status, _ in answers] == [404, 404, 404, 404, 404, 401]


def test_the_hosts_own_passwords(ask: Ask) -> None:
    path = ["GET", f"{V1}/runs", None]
    cookie = {"cookie": "access-token=cookie-of-somebody"}
    later = {"cookie": "access-token-xyz=cookie-of-somebody"}
    tries = [{}, basic("me:a:b"), basic("me:no"), basic("you:b"), cookie, later, {"cookie": "a=b"}]
    requests = [[*path, headers] for headers in tries]

    def found(**environment: str) -> list[int]:
        return [status for status, _ in ask(*requests, **environment)]

    assert found() == [200] * 7
    api = found(STAND_IN_API_AUTH="me:a:b")
    assert api == [401, 200, 401, 401, 401, 401, 401]
    page = found(STAND_IN_GRADIO_AUTH="you:b")
    assert page == [401, 401, 401, 200, 200, 200, 401]
    both = found(STAND_IN_API_AUTH="me:a:b", STAND_IN_GRADIO_AUTH="you:b")
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
