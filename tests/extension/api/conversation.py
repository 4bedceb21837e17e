"""Asks the routes, in the Python of a host: ``python conversation.py CLONE``.

Each line of the input is a conversation, ``{"requests": […], "environment": {…}}``, and gets a
line of answers. A request is ``[method, path, body]`` or ``[method, path, body, headers]``; the
token is sent unless a header of its name is empty, TOKEN in a header stands for it, and a header
NONE is left out. The stand-in's modules and our routes are set up anew for each, as in the WebUI.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CLONE = Path(sys.argv[1])
sys.path[:0] = [str(CLONE / "tests" / "helpers" / "a1111"), str(CLONE)]

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

ADDRESS = "http://127.0.0.1:7860"


def host() -> Any:
    """The host's app with our routes, as after a start."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "modules":
            del sys.modules[name]
    from modules import script_callbacks

    import extension

    extension._studios.clear()  # all that it keeps from one start to the next
    extension.register(CLONE)
    app: Any = FastAPI()
    app.tokens = {"cookie-of-somebody": "you"}
    script_callbacks.call("app_started", None, app)
    return app


def token() -> str:
    """As a script finds it."""
    found = list(Path(os.environ["STAND_IN_DATA"]).rglob(".api-token"))
    return found[0].read_text().strip() if found else ""


def converse(requests: list[list[Any]]) -> list[Any]:
    with TestClient(host(), base_url=ADDRESS) as client:  # else each request starts a thread
        shown = token()
        return [answered(client, shown, *request) for request in requests]


def answered(
    client: TestClient,
    shown: str,
    method: str,
    path: str,
    body: Any,
    more: dict[str, str] | None = None,
) -> list[Any]:
    """Status and content of the answer; of what is no JSON its length."""
    headers = {"x-dreambooth-token": shown} | (more or {})
    headers = {key: value.replace("TOKEN", shown) for key, value in headers.items() if value}
    content = None if body is None else body if isinstance(body, str) else json.dumps(body)
    if content is not None:
        headers.setdefault("content-type", "application/json")
    sent = {k: v.encode("latin-1") for k, v in headers.items() if v != "NONE"}
    answer = client.request(method, path, content=content, headers=sent)
    kind = answer.headers.get("content-type", "")
    return [answer.status_code, answer.json() if "json" in kind else len(answer.content)]


def main() -> None:
    usual = dict(os.environ)
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ.clear()
        os.environ.update(usual | asked["environment"])
        print("ANSWERS" + json.dumps(converse(asked["requests"])), flush=True)


if __name__ == "__main__":
    main()
