"""Attacks every route with every payload, in the Python of a host; prints what came of it.

``python attacks.py CLONE FOLDER [STEP OFFSET]``: the host's tree is made in FOLDER; with STEP only
every so manieth attack is tried, from OFFSET. Routes, parameters and fields
are read from the app itself, so that a new one is attacked without anybody remembering it. The
engine is a stand-in that remembers what it was asked. The last line is JSON: for each class of
attack how many were tried, and what each that got through did.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import payloads

CLONE, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
DATA, OUTSIDE = FOLDER / "webui", FOLDER / "outside"
sys.path[:0] = [str(CLONE / "tests" / "helpers" / "a1111"), str(CLONE)]
os.environ["STAND_IN_DATA"] = str(DATA)

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

PREFIX = "/dreambooth/v1"
ADDRESS = "http://127.0.0.1:7860"
SECRET = "a secret of the user's"

WRITABLE = ("outputs/dreambooth", "outputs/pictures", "models/Lora", "models/Stable-diffusion")
"""Where something may change: of the pictures, captions and crops alone."""

READABLE = (*WRITABLE, "models", "outputs", "embeddings")

GOOD = {
    "run": "dog",
    "name": "dog",
    "task": "none",
    "folder": "outputs/pictures",
    "path": "samples/a.png",
    "picture": "outputs/pictures/a.png",
    "file": "models/Lora/a.safetensors",
    "text": "a dog",
    "sides": [0.1, 0.1, 0.9, 0.9],
    "verb": "save",
    "image": "a.png",
    "mark": "good",
    "family": "sd1",
    "out": "made",
    "target": "made",
    "source": "a.safetensors",
    "base": "base.safetensors",
    "tuned": "base.safetensors",
    "adapters": [{"file": "a.safetensors", "weight": 1.0}],
}
"""Values with which a route goes as far as it can while another is attacked."""


@dataclass
class Score:
    """How a class of attack went."""

    tried: int = 0
    through: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A request in its parts."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None
    raw: bytes | None = None
    headers: dict[str, str] | None = None


class Engine:
    """In the place of the engine: remembers what it was asked, and says that all went well."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def run(self, helper: Any, *argv: Any, **_: Any) -> dict[str, Any]:
        words = [os.fspath(each) for each in argv]
        if words[0] == "task":
            request = json.loads(Path(words[1]).read_text(encoding="utf-8"))
            if config := request["options"].pop("config", None):
                found = json.loads(Path(config).read_text(encoding="utf-8"))
                self.asked.append({"options": without_words(found)})
            self.asked += [request, words[2:]]
        else:
            self.asked.append(words)
        run = DATA / "outputs" / "dreambooth" / "runs" / "attack"
        run.mkdir(parents=True, exist_ok=True)
        return {"path": str(run), "config": {}, "kind": "adapter", "files": []}

    def strangers(self) -> Iterator[str]:
        """Paths of elsewhere that reached it where it takes paths, and flags among its words."""
        for request in self.asked:
            for text in named_paths(request):
                if os.path.isabs(text) and not self.is_ours(text):
                    yield text
        self.asked.clear()

    @staticmethod
    def is_ours(path: str) -> bool:
        try:
            real = os.path.realpath(path)
        except ValueError:  # a NUL, half a character
            return False
        roots = [os.path.realpath(DATA / place) for place in READABLE]
        settings = os.path.basename(os.path.dirname(real)).startswith("dreambooth-")
        return settings or any(real.startswith(root + os.sep) for root in roots)


SAID = ("title", "metadata", "prediction_type", "scheduler_type", "variant", "block", "preset")
"""Options that are words and never looked up on the disk."""


WORDS = (
    *("instance_prompt", "class_prompt", "negative_prompt", "prompts", "templates"),
    *("placeholder_token", "initializer_token", "step_rules", "optimizer_args", "target_modules"),
    *("scheduler", "budget", "stream", "device"),
    *("project", "repository", "licence", "consent", "name", "presets", "revision", "variant"),
)
"""Options of a run that are words; every other text may be a path, that of a new option too."""


def without_words(config: Any) -> Any:
    """A run's configuration, less what is never looked up on the disk."""
    if isinstance(config, dict):
        return {k: without_words(v) for k, v in config.items() if k not in WORDS}
    return [without_words(each) for each in config] if isinstance(config, list) else config


def named_paths(request: Any) -> Iterator[str]:
    """What may be a path in a request to the engine, or in its command line."""
    if isinstance(request, dict):
        for name, value in request["options"].items():
            if name not in SAID:
                yield from texts(value)
        return
    for word in request:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            yield word.rpartition(":")[0] or word
        elif equals and flag[2:].replace("-", "_") not in SAID:
            yield value


def texts(value: Any) -> Iterator[str]:
    """All texts in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def make_tree() -> None:
    """The host's data, with what must not be touched in and beside it."""
    from PIL import Image

    shutil.rmtree(FOLDER, ignore_errors=True)
    run = DATA / "outputs" / "dreambooth" / "runs" / "dog"
    for place in ("scripts", "extensions/x", "models/Lora", "models/Stable-diffusion"):
        (DATA / place).mkdir(parents=True)
    for place in (run / "samples", OUTSIDE / "there", DATA / "outputs" / "pictures"):
        place.mkdir(parents=True)
    (run / "config.yaml").write_text("run: {steps: 7}\n")
    (run / "events.jsonl").write_text(
        '{"time": 1.0, "kind": "progress", "loss": NaN}\n'
        '{"time": 2.0, "kind": "sample", "path": "samples/a.png", "prompt": "a dog", "seed": 0}\n'
    )
    (run / "receipt.json").write_text('{"base": {"fingerprint": "b"}}')
    header = json.dumps({"__metadata__": {"x": "y"}}).encode()
    for file in ("models/Lora/a", "models/Stable-diffusion/base"):
        (DATA / f"{file}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    small = Image.new("RGB", (8, 8))
    for image in (
        run / "samples" / "a.png",
        DATA / "outputs" / "pictures" / "a.png",
        DATA / "scripts" / "requirements.png",
        OUTSIDE / "there" / "image.png",
        OUTSIDE / "image.png",
    ):
        small.save(image)
    for file in (OUTSIDE / "secret.txt", OUTSIDE / "there" / "image.txt", OUTSIDE / "secret.yaml"):
        file.write_text(SECRET)
    (DATA / "requirements_versions.txt").write_text("torch\n")
    (DATA / "scripts" / "requirements.txt").write_text("torch\n")
    if os.name != "nt":
        (DATA / "models" / "Lora" / "link").symlink_to(OUTSIDE)
        (DATA / "outputs" / "pictures" / "link").symlink_to(OUTSIDE / "there")
        (DATA / "outputs" / "pictures" / "a.txt").symlink_to(OUTSIDE / "secret.txt")


def snapshot() -> dict[str, Any]:
    """Every file with its content, and every folder, links not followed."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(FOLDER):
        for name in [*folders, *files]:
            path = Path(place) / name
            whole = path.is_file() and not path.is_symlink()
            found[path.relative_to(FOLDER).as_posix()] = path.read_bytes() if whole else None
    return found


def misplaced(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was changed where nothing may be."""
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    found = []
    for name in changed:
        inside = any(name.startswith(f"webui/{place}/") for place in WRITABLE)
        beside = name.endswith((".txt", ".crop.json"))
        if not inside or (name.startswith("webui/outputs/pictures/") and not beside):
            found.append(name)
    return found


class Suite:
    """The host under attack."""

    def __init__(self, step: int = 1, offset: int = 0) -> None:
        from dreambooth_core.hosting import warm

        self.step, self.offset, self.turn = step, offset, 0

        self.engine = Engine()
        warm.Helper.run = lambda helper, *argv, **given: self.engine.run(helper, *argv, **given)  # type: ignore[method-assign]
        make_tree()
        from modules import script_callbacks

        import extension
        from extension.service import runs

        extension.register(CLONE)
        runs.Runs._hand_over = lambda *_: None  # type: ignore[method-assign]
        self.app: Any = FastAPI()
        self.app.tokens = {}
        script_callbacks.call("app_started", None, self.app)
        self.studio = extension._studios[CLONE]
        self.token = getattr(getattr(self.studio, "token", None), "value", "")
        self.client = TestClient(self.app, base_url=ADDRESS, raise_server_exceptions=False)
        # Every host has it; the extension asks it for a GPU alone, and here is none.
        sys.modules.setdefault("torch", types.ModuleType("torch"))
        self.scores: dict[str, Score] = {}
        self.statuses: Counter[int] = Counter()
        self.pristine = snapshot()
        self.answers: dict[str, tuple[int, str]] = {}
        subprocess.Popen = _refuse  # type: ignore[assignment, misc]

    # -- what there is to attack ------------------------------------------------------------------

    def routes(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Method, path and description of every route of ours."""
        described = self.app.openapi()["paths"]
        found = [
            (method.upper(), path, operation)
            for path, operations in described.items()
            if path.startswith(PREFIX)
            for method, operation in operations.items()
        ]
        known = {(method, path) for method, path, _ in found}
        for route in self.app.routes:
            path = getattr(route, "path", "")
            if path.startswith(PREFIX) and "{rest:path}" not in path:
                missing = {(m, path) for m in route.methods} - known
                assert not missing, f"not described, so not attacked: {missing}"
        return found

    def body_of(self, operation: dict[str, Any]) -> dict[str, Any] | None:
        """The fields of a body, by name; None where there is none."""
        told = operation.get("requestBody")
        if not told:
            return None
        shape = told["content"]["application/json"]["schema"]
        reference = shape.get("$ref") or shape["allOf"][0]["$ref"]
        named = self.app.openapi()["components"]["schemas"][reference.rpartition("/")[2]]
        fields: dict[str, Any] = named.get("properties", {})
        return fields

    def good(self, method: str, path: str, operation: dict[str, Any]) -> Request:
        """A request that is right, as far as can be told."""
        query = {}
        for each in operation.get("parameters", ()):
            if each["in"] == "path":
                path = path.replace(f"{{{each['name']}}}", GOOD.get(each["name"], "x"))
            else:
                number = each["schema"].get("type") == "integer"
                query[each["name"]] = "0" if number else str(GOOD.get(each["name"], "x"))
        fields = self.body_of(operation)
        if fields is None:
            return Request(method, path, query)
        body: dict[str, Any] = {name: GOOD[name] for name in fields if name in GOOD}
        tool = path.rpartition("/")[2]
        if "values" in fields:
            body["values"] = {}
            options = self.studio.tools.all().get(tool, ())
            body["values"] |= {o.name: GOOD[o.name] for o in options if o.required}
        return Request(method, path, query, body)

    # -- attacking --------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything."""
        for method, path, operation in self.routes():
            began, count = time.process_time(), sum(self.statuses.values())
            right = self.good(method, path, operation)
            self.door(right)
            self.bodies(right)
            self.parameters(method, path, operation, right)
            if right.body is not None:
                self.fields(right)
            self.look_around(f"{method} {path}")
            count = sum(self.statuses.values()) - count
            took = time.process_time() - began
            sys.stderr.write(f"{method} {path}: {count} attacks, {took:.1f} s\n")

    def door(self, right: Request) -> None:
        """Who is asking, and with what."""
        for kind, headers, expected in payloads.DOOR:
            if "content-type" in headers and right.body is None:
                continue
            self.try_one(kind, replaced(right, headers=headers), expected=expected)

    def bodies(self, right: Request) -> None:
        """Bodies as a whole."""
        if right.body is not None:
            for kind, raw in payloads.BODIES:
                request = replaced(right, raw=raw)
                self.try_one(kind, request, expected=(400, 413, 422), value=raw[:60])

    def parameters(self, method: str, path: str, operation: dict[str, Any], right: Request) -> None:
        """Parts of the address and of the query."""
        for each in operation.get("parameters", ()):
            name = each["name"]
            for kind, value in payloads.texts(OUTSIDE, DATA):
                if each["in"] == "path":
                    shown = quote(value, safe="", errors="surrogatepass")
                    filled = path.replace(f"{{{name}}}", shown)
                    for other, given in GOOD.items():
                        filled = filled.replace(f"{{{other}}}", str(given))
                    request = replaced(right, path=filled)
                else:
                    request = replaced(right, query=right.query | {name: value})
                self.try_one(kind, request, name=name, value=value)
            if each["schema"].get("type") == "integer":
                for value in ("-1", "9" * 30, "9" * 5000, "1.5", "NaN", "", "true"):
                    request = replaced(right, query=right.query | {name: value})
                    self.try_one("types", request)

    def fields(self, right: Request) -> None:
        """Every field of the body, and every option in its values."""
        for name in right.body:
            if name != "values":
                self.field(right, (name,))
        self.try_one("types", replaced(right, body=right.body | {"unknown": 1}))
        if "values" not in right.body:
            return
        tool = right.path.rpartition("/")[2]
        options = self.studio.tools.all().get(tool, ())
        if options:
            for option in options:
                path = option.type in ("file", "output", "weighted")
                self.field(right, ("values", option.name), few=not path)
        else:
            keys = payloads.config_keys(self.studio.schema(), few=tool != "check")
            for name, kind in keys.items():
                few = name != "concepts[0].images"
                self.field(right, ("values", name), few=few, listed=kind == "list")
        for kind, value in payloads.TYPES:
            self.try_one(kind, replaced(right, body=right.body | {"values": value}))
        for kind, value in payloads.texts(OUTSIDE, DATA, few=True):
            values = right.body["values"] | {value: "x"}
            request = replaced(right, body=right.body | {"values": values})
            self.try_one(kind, request, name="a key", value=value)

    def field(
        self, right: Request, at: tuple[str, ...], *, few: bool = False, listed: bool = False
    ) -> None:
        attacks = [*payloads.texts(OUTSIDE, DATA, few=few), *payloads.TYPES[:: 5 if few else 1]]
        for kind, value in attacks:
            shapes = [value, [value]] if listed else [value]
            if kind in ("there", "flags", "null") and isinstance(value, str):
                shapes += [[value], ["1", value], [{"file": value, "weight": 1}]]
            for each in shapes:
                body = json.loads(json.dumps(right.body))
                inner = body
                for part in at[:-1]:
                    inner = inner[part]
                inner[at[-1]] = each
                self.try_one(kind, replaced(right, body=body), name=".".join(at), value=each)

    def try_one(
        self,
        kind: str,
        request: Request,
        *,
        expected: tuple[int, ...] = (),
        name: str = "",
        value: Any = None,
    ) -> None:
        self.turn += kind not in ("there", "absent")
        if self.turn % self.step != self.offset % self.step:
            return
        score = self.scores.setdefault(kind, Score())
        score.tried += 1
        headers = {"x-dreambooth-token": self.token, "content-type": "application/json"}
        headers |= request.headers or {}
        sent = {k: v.encode("latin-1") for k, v in headers.items() if v}
        content = request.raw
        if content is None and request.body is not None:
            content = json.dumps(request.body).encode("ascii")
        if content is None:
            sent.pop("content-type", None)
        query = "&".join(
            f"{quote(k)}={quote(v, safe='', errors='surrogatepass')}"
            for k, v in request.query.items()
        )
        address = request.path + (f"?{query}" if query else "")
        answer = self.client.request(request.method, address, content=content, headers=sent)
        self.statuses[answer.status_code] += 1
        words = f"{request.method} {address[:150]} {name} {str(value)[:150]!r}"
        for wrong in self.wrongs(answer, expected):
            score.through.append(f"{wrong}: {words} {request.headers or ''}")
        self.settle_tasks()
        for stranger in self.engine.strangers():
            score.through.append(f"reached the engine: {stranger[:80]}: {words}")
        if kind in ("there", "absent"):
            self.compare(score, words, answer)
        if request.method == "DELETE" and answer.status_code == 200:
            make_tree()

    def wrongs(self, answer: Any, expected: tuple[int, ...]) -> Iterator[str]:
        """What is wrong with an answer."""
        if answer.status_code >= 500:
            yield f"status {answer.status_code}"
        elif expected and answer.status_code not in expected:
            yield f"status {answer.status_code} in place of {expected}"
        elif answer.status_code >= 400:
            try:
                parts = set(answer.json()["error"])
            except (ValueError, KeyError, TypeError):
                parts = set()
            if parts != {"what", "where", "do", "line"}:
                yield f"no documented error: {answer.text[:80]}"
        if SECRET.encode() in answer.content:
            yield "a secret was read"

    def compare(self, score: Score, words: str, answer: Any) -> None:
        """What is there and may not be read gets the answer of what is not there."""
        try:
            what = str(answer.json().get("error", {}).get("what", ""))
        except (ValueError, AttributeError):
            what = ""
        now = (answer.status_code, payloads.twin(what))
        first = self.answers.setdefault(payloads.twin(words), now)
        if first != now:
            score.through.append(f"tells whether it is there: {first} and {now}: {words}")

    def settle_tasks(self) -> None:
        """Tools work in a thread of their own."""
        self.studio.tools._pool.submit(lambda: None).result(10)

    def look_around(self, words: str) -> None:
        """What was written where it must not be."""
        score = self.scores.setdefault("written elsewhere", Score())
        score.tried += 1
        score.through += [f"{name}: {words}" for name in misplaced(self.pristine, snapshot())]
        make_tree()


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("no process is started here")


def replaced(request: Request, **changes: Any) -> Request:
    """A request with another part."""
    parts = {name: getattr(request, name) for name in Request.__dataclass_fields__}
    return Request(**parts | changes)


def main() -> None:
    suite = Suite(*map(int, sys.argv[3:5]))
    with suite.client:  # else each request starts a thread
        suite.run()
    print(
        "ATTACKED"
        + json.dumps(
            {
                "routes": len(suite.routes()),
                "statuses": suite.statuses,
                "classes": {
                    kind: {"tried": score.tried, "through": score.through}
                    for kind, score in sorted(suite.scores.items())
                },
            }
        )
    )


if __name__ == "__main__":
    main()
