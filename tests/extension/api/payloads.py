"""What the attacks send. Each has a class, by which they are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Attack = tuple[str, Any]

DOOR: list[tuple[str, dict[str, str], tuple[int, ...]]] = [
    ("no token", {"x-dreambooth-token": ""}, (401,)),
    ("no token", {"x-dreambooth-token": "", "cookie": "access-token=x"}, (401,)),
    ("wrong token", {"x-dreambooth-token": "x" * 43}, (401,)),
    ("wrong token", {"x-dreambooth-token": "\xff"}, (401,)),
    ("wrong token", {"x-dreambooth-token": "", "authorization": "Bearer x"}, (401,)),
    ("wrong token", {"x-dreambooth-token": "", "authorization": "Basic eDp4"}, (401,)),
    *(
        ("foreign origin", {"origin": origin}, (403,))
        for origin in (
            "https://evil.example",
            "http://127.0.0.1",
            "http://127.0.0.1:3000",
            "http://localhost:7860",
            "http://127.0.0.1:7860.evil.example",
            "http://127.0.0.1:7860@evil.example",
            "null",
            "file://",
            "chrome-extension://abc",
            "\xff",
        )
    ),
    ("foreign origin", {"sec-fetch-site": "cross-site"}, (403,)),
    ("foreign origin", {"sec-fetch-site": "same-site"}, (403,)),
    ("foreign origin", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, (403,)),
    *(
        ("rebinding", {"host": host}, (403,))
        for host in (
            "evil.example",
            "evil.example:7860",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "192.168.0.9:7860",
            "127.0.0.1@evil.example",
            "127.0.0.1:7860@x",
            "[::1",
            "0x7f.1",
            "2130706433",
            "\xff",
            "a b",
            "localhost:99999999",
        )
    ),
    *(
        ("wrong content type", {"content-type": kind}, (415,))
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/jsonp",
            "application/vnd.api+json",
            "text/json",
            "\xff",
            "",
        )
    ),
    ("too large", {"content-length": "300000000"}, (413,)),
    ("too large", {"content-length": "300000000", "x-dreambooth-token": ""}, (413,)),
]
"""Class, headers, and the only answers that are right. An empty header is not sent."""

BODIES: list[tuple[str, bytes]] = [
    *(
        ("bad bodies", raw)
        for raw in (
            b"",
            b"{",
            b'{"values": ',
            b"null",
            b"[]",
            b"5",
            b'"text"',
            b"\xff\xfe\x00",
            b"\xef\xbb\xbf{}",
            '{"values": {}}'.encode("utf-16"),
            b"name=dog&values=1",
            b'{"values": NaN}',
            b'{"values": {"run.seed": Infinity}}',
            b'{"values": {"run.seed": 1e999}}',
            b'{"values": {"run.seed": ' + b"9" * 6000 + b"}}",
            b'{"values": {"run.seed": 1}, "values": {}}',
            b'{"values": {"a": "\\ud800"}}',
            b'{"\\ud800": 1}',
            b"[" * 100_000,
            b'{"values": ' * 2000,
            b'{"a":' * 50 + b"1" + b"}" * 50,
        )
    ),
    ("too large", b'{"name": "' + b"x" * 1_000_001 + b'"}'),
    ("too large", b"[" + b"1," * 400_000 + b"1]"),
]

TYPES: list[Attack] = [
    ("types", value)
    for value in (
        None,
        True,
        0,
        -1,
        1.5,
        2**62,
        1e308,
        [],
        {},
        [[]],
        [None],
        [1],
        [{}],
        {"a": {"b": []}},
        [{"file": None}],
        [{"file": "a", "weight": "1"}],
        [{"file": "a", "weight": True}],
        [{"file": "a", "out": "x"}],
        ["a.safetensors:nan"],
    )
]


def texts(outside: Path, data: Path, *, few: bool = False) -> Iterator[Attack]:
    """Texts for wherever one can stand.

    Args:
        outside: a folder beside the host's data, with a secret in it.
        data: the host's data.
        few: one of each class.
    """
    yield "there", f"{outside}/there"
    yield "absent", f"{outside}/thexe"
    yield "traversal", "../outside/secret.txt"
    yield "flags", f"--out={outside}/x.safetensors"
    yield "null", "a\0b"
    yield "unicode", "\u202egnp.a\U0001f415\u0301"
    if few:
        return
    yield "there", f"{outside}/secret.txt"
    yield "absent", f"{outside}/sexret.txt"
    yield "there", f"{outside}/image.png"
    yield "absent", f"{outside}/imaxe.png"
    yield from (
        ("traversal", text)
        for text in (
            "..",
            ".",
            "../../../../../../etc/passwd",
            "models/../../outside/secret.txt",
            "models/Lora/../../../outside/image.png",
            "outputs/pictures/../../../outside/image.png",
            "..\\..\\outside\\secret.txt",
            "%2e%2e%2foutside%2fsecret.txt",
            "....//....//outside",
            "/etc/passwd",
            "/proc/self/environ",
            "/dev/zero",
            "file:///etc/passwd",
            "~/x",
            "~root/.ssh/id_rsa",
            "$HOME/x",
            f"{data}/scripts/x.safetensors",
            f"{data}/scripts/requirements.png",
            f"{data}/extensions/x/made",
            f"{data}/requirements_versions.txt",
            f"{data}/outputs/dreambooth/.api-token",
            f"{data}/outputs/dreambooth/presets/../../../scripts/x",
            "scripts/x.py",
            "/",
        )
    )
    yield from (
        ("links", text)
        for text in (
            "models/Lora/link/secret.txt",
            "models/Lora/link/made.safetensors",
            "models/Lora/link",
            "outputs/pictures/link",
            "outputs/pictures/link/image.png",
            "link/made",
        )
    )
    yield from (
        ("network paths", text)
        for text in (
            "//server/share/x",
            "\\\\server\\share\\x",
            "\\\\?\\C:\\x",
            "\\\\.\\pipe\\x",
            "//?/UNC/server/share",
            " \\\\server\\share",
        )
    )
    yield from (
        ("flags", text)
        for text in (
            "--json",
            "--help",
            "-h",
            "--",
            "-",
            "--resume=/etc",
            f"x:1 --out {outside}/x",
            "@/etc/passwd",
            "run.output=/etc",
        )
    )
    yield from (
        ("null", text) for text in ("\0", "models/Lora/a.safetensors\0.png", "../outside\0")
    )
    yield from (("long", text) for text in ("x" * 300, "x" * 1500, "a/" * 700, "../" * 400))
    yield from (
        ("unicode", text)
        for text in (
            "\ud800",
            "\udcff",
            "\ufeff",
            "é" * 200,
            "ａ/．．/ｂ",
            "\u2028\u2029",
            "a\nb\r\nX: y",
            "\x1b[31m",
            "\x7f\x01",
            "{0.__class__} %s %n ${jndi:x}",
            "a [/red] dog",
            "<script>alert(1)</script>",
            "'; DROP TABLE runs; --",
        )
    )
    yield from (
        ("names", text)
        for text in (
            "",
            " ",
            "CON",
            "aux.txt",
            "a:b",
            "a.",
            "C:\\x",
            "C:x",
            "x.png:s",
            "*",
            "?",
        )
    )


def twin(text: str) -> str:
    """A text in which what is there and what is absent have the same names."""
    for absent, there in (("thexe", "there"), ("sexret", "secret"), ("imaxe", "image")):
        text = text.replace(absent, there)
    return text


def config_keys(schema: dict[str, Any], *, few: bool) -> dict[str, str]:
    """Keys of a configuration and their types: all, or those that may hold paths: every text."""
    found: dict[str, str] = {}
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        for child in [*node.get("children", ()), *filter(None, [node.get("item")])]:
            waiting.append(child)
            key = child.get("key", "").replace("[]", "[0]")
            if key and "children" not in child:
                text = child["type"] in ("str", "list") and not child.get("choices")
                if text or not few:
                    found[key] = child["type"]
    return dict(sorted(found.items()))
