"""Another web page calls the tab's functions: gradio lets it, the tab does not. Nor does it let a
name that leads here by DNS rebinding, under which gradio tells all that its page holds."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers.gradio import HOSTS, python_of

from .conftest import Server


def ask(address: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(address, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


@pytest.mark.parametrize("host", HOSTS)
def test_every_function_asks_for_the_word_of_the_page(host: str, tmp_path: Path) -> None:
    server = Server(python_of(host), tmp_path)
    try:
        server.wait()
        _, config = ask(server.address + "config")
        named = {part["props"].get("elem_id"): part for part in config["components"]}
        carrier = named["dreambooth_word"]
        status, told = ask(server.address + "dreambooth/page", sec_fetch_site="same-origin")
        assert status == 200
        for foreign in (
            {"host": f"rebound.example:{server.port}"},
            {"origin": "https://page.example"},
            {"sec_fetch_site": "cross-site"},
        ):
            assert ask(server.address + "dreambooth/page", **foreign)[0] == 403
        assert told["word"] not in json.dumps(config)
        ours = [(n, each) for n, each in enumerate(config["dependencies"]) if each["backend_fn"]]
        assert len(ours) > 40
        for _, each in ours:
            assert each["inputs"][0] == carrier["id"], each

        def call(number: int, shown: str) -> int:
            inputs = ours[number][1]["inputs"]
            given = [shown, *("" for _ in inputs[1:])]
            body = {"data": given, "fn_index": ours[number][0], "session_hash": "x"}
            return ask(server.address + "run/predict", body)[0]

        quiet = [n for n, (_, each) in enumerate(ours) if not each["queue"]]
        few = next(n for n in quiet if len(ours[n][1]["inputs"]) == 2)
        assert call(few, told["word"]) == 200
        for wrong in ("", "x" * 32):
            assert call(few, wrong) == 500
    finally:
        server.close()
