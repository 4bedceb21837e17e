"""Asks the routes, in the Python of a host, and prints what they answer as JSON.

``python conversation.py CLONE REQUESTS``: REQUESTS is a JSON list of ``[method, path, body]`` or
``[method, path, body, headers]``; the stand-in's modules and our routes are set up as in the
WebUI, with gradio's own app.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CLONE = Path(sys.argv[1])
sys.path[:0] = [str(CLONE / "tests" / "helpers" / "a1111"), str(CLONE)]

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from modules import script_callbacks  # noqa: E402

from extension import register  # noqa: E402


def main() -> None:
    register(CLONE)
    app = FastAPI()
    app.tokens = {"cookie-of-somebody": "you"}  # type: ignore[attr-defined]
    script_callbacks.call("app_started", None, app)
    client = TestClient(app)
    answers: list[Any] = []
    for method, path, body, *rest in json.loads(sys.argv[2]):
        headers = rest[0] if rest else {}
        content = None if body is None else body if isinstance(body, str) else json.dumps(body)
        if content is not None and "content-type" not in headers:
            headers["content-type"] = "application/json"
        answer = client.request(method, path, content=content, headers=headers)
        kind = answer.headers.get("content-type", "")
        answers.append(
            [answer.status_code, answer.json() if "json" in kind else len(answer.content)]
        )
    print("ANSWERS" + json.dumps(answers))


main()
