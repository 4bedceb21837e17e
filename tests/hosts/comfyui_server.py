"""A real ComfyUI as a process, over HTTP and its websocket."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import websocket

from tests.hosts import comfyui_host

Prompt = dict[str, dict[str, Any]]
Message = dict[str, Any]


class Refused(Exception):
    """The host did not take a prompt; its errors."""


@dataclass
class Done:
    """How a prompt went."""

    messages: list[Message]
    outputs: dict[str, Any]
    error: str = ""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Lines that nodes showed: (node, line)."""
    previews: int = 0
    seconds: float = 0.0
    refused: dict[str, Any] = field(default_factory=dict)
    """What the host did not begin with, by node: the rest of a prompt runs all the same."""

    def of(self, kind: str) -> list[Message]:
        return [m["data"] for m in self.messages if m["type"] == kind]

    @property
    def ran(self) -> list[str]:
        """The nodes that were executed, in order."""
        return [d["node"] for d in self.of("executing") if d.get("node")]

    @property
    def cached(self) -> list[str]:
        return [node for d in self.of("execution_cached") for node in d["nodes"]]


@dataclass
class Server:
    """A running ComfyUI."""

    folder: Path
    port: int
    log: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def text(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            found: str = answer.read().decode()
            return found

    def post(self, path: str, body: Any = None) -> Any:
        data = json.dumps(body if body is not None else {}).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def filled(self, prompt: Prompt) -> Prompt:
        """The prompt with the nodes' defaults where it says nothing."""
        found = {}
        for name, one in prompt.items():
            told = self.info[one["class_type"]]["input"].get("required", {})
            defaults = {k: default_of(*v) for k, v in told.items() if k not in one["inputs"]}
            known = {k: v for k, v in defaults.items() if v is not None}
            found[name] = {**one, "inputs": {**known, **one["inputs"]}}
        return found

    @cached_property
    def info(self) -> dict[str, Any]:
        """Every node as the host describes it."""
        described: dict[str, Any] = self.get("/object_info")
        return described

    def run(
        self, prompt: Prompt, watch: Callable[[Message], None] | None = None, seconds: float = 300
    ) -> Done:
        """Queues a prompt and follows it to its end. ``watch`` sees each message.

        Raises:
            Refused: it was not taken.
        """
        client = uuid.uuid4().hex
        link = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=seconds
        )
        started = time.monotonic()
        try:
            answer = self.post("/prompt", {"prompt": self.filled(prompt), "client_id": client})
            done = Done([], {}, refused=answer.get("node_errors") or {})
            self._follow(link, answer["prompt_id"], done, watch)
        except BaseException:
            self.post("/interrupt")  # the next test finds a queue that moves
            raise
        finally:
            link.close()
        done.seconds = time.monotonic() - started
        done.outputs = self._history(answer["prompt_id"]).get("outputs", {})
        return done

    def _follow(
        self, link: Any, prompt_id: str, done: Done, watch: Callable[[Message], None] | None
    ) -> None:
        while True:
            data = link.recv()
            if isinstance(data, bytes):
                said = len(done.texts)
                _binary(data, done)
                for node, text in done.texts[said:]:
                    if watch is not None:
                        watch({"type": "text", "data": {"node": node, "text": text}})
                continue
            message = json.loads(data)
            if message["data"].get("prompt_id", prompt_id) != prompt_id:
                continue
            done.messages.append(message)
            if watch is not None:
                watch(message)
            kind = message["type"]
            if kind == "execution_success":
                return
            if kind == "execution_interrupted":
                done.error = "interrupted"
                return
            if kind == "execution_error":
                done.error = message["data"]["exception_message"].strip()
                return

    def _history(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(50):  # it comes a moment after the last message
            found = self.get(f"/history/{prompt_id}")
            if prompt_id in found:
                history: dict[str, Any] = found[prompt_id]
                return history
            time.sleep(0.1)
        raise AssertionError("the prompt is not in the history")

    def pictures(self, done: Done, node: str) -> list[Path]:
        """The files that a SaveImage node wrote."""
        images = done.outputs[node]["images"]
        return [self.folder / "output" / one["subfolder"] / one["filename"] for one in images]


def default_of(kind: Any, options: dict[str, Any] | None = None) -> Any:
    """What a widget holds at first; None for a socket."""
    said = (options or {}).get("default")
    if said is not None:
        return said
    choices = kind if isinstance(kind, list) else (options or {}).get("options") or []
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 1.0, "STRING": "", "BOOLEAN": False}.get(str(kind))


def _binary(data: bytes, done: Done) -> None:
    kind = int.from_bytes(data[:4], "big")
    if kind == 3:  # text: the length of the node's number, the number, the text
        length = int.from_bytes(data[4:8], "big")
        node, text = data[8 : 8 + length].decode(), data[8 + length :].decode()
        done.texts.append((node, text))
    else:
        done.previews += 1


@contextmanager
def serving(host: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Starts ComfyUI on a free port; ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = host / "user" / f"test-{port}.log"
    log.parent.mkdir(exist_ok=True)
    command = [comfyui_host.python(host), "main.py", "--cpu", "--disable-api-nodes"]
    command += ["--port", str(port), "--fp32-text-enc", "--preview-method", "none", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=host,
            env=comfyui_host.environment() | (env or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        server = Server(host, port, log)
        try:
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(f"ComfyUI ended:\n{server.log.read_text()[-3000:]}")
        try:
            server.get("/system_stats")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("ComfyUI does not answer")
