"""Runs pip: its progress is passed on, its output kept, its failure turned into one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from dreambooth_core.environment.pins import Pin
from dreambooth_core.environment.processes import run, started
from dreambooth_core.errors import DreamBoothError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit): bytes of a file (``B``) or packages (``packages``)."""

OFFLINE = re.compile(
    r"NewConnectionError|ConnectTimeout|Max retries exceeded|connection broken|ProxyError"
    r"|Temporary failure in name resolution|Name or service not known|getaddrinfo failed"
    r"|nodename nor servname|Network is unreachable|No route to host|Connection refused"
    r"|Connection reset|ReadTimeout|Read timed out|Could not fetch URL|ConnectionError",
    re.IGNORECASE,
)
CANCELLED = re.compile(r"Operation cancelled by user|^KeyboardInterrupt", re.MULTILINE)
"""What pip says when Ctrl+C reached it, as it does on Windows, perhaps before it reached us."""
PLACES = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_NO_INDEX",
    "PIP_TRUSTED_HOST",
)
"""What names places to pip."""
UNREACHABLE = (
    "the package index cannot be reached: is there a network?",
    "Connect, or name a mirror with INDEX_URL and TORCH_INDEX_URL, and run this again",
)
ALTERED = re.compile(
    r"DO NOT MATCH THE HASHES.*?\n\s+(?P<package>\S+)(?: from (?P<place>\S+))?", re.DOTALL
)
"""pip's words for a file that is not the one that a hash names, and the first such file."""
FAILURES = (
    (
        re.compile(r"No space left on device|not enough space on the disk|Errno 28", re.IGNORECASE),
        "the disk is full",
        "Make room, or set DREAMBOOTH_ENV to a folder on another disk, and run this again",
    ),
    (
        re.compile(r"Windows Long Path|filename or extension is too long", re.IGNORECASE),
        "the folder's path is too long for Windows",
        r"Set DREAMBOOTH_ENV to a short folder, C:\dreambooth say, and run this again",
    ),
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification"),
        "the package index has a certificate that Python does not trust",
        "Behind a proxy, set PIP_CERT to its certificate, and run this again",
    ),
    (OFFLINE, *UNREACHABLE),
    (
        re.compile(r"Permission denied|Access is denied|WinError 5\b|Errno 13"),
        "a file may not be written",
        "Stop what is training, or set DREAMBOOTH_ENV to a folder of yours, and run this again",
    ),
)
"""What pip prints, what it means, what to do. The first that matches wins."""


class Pip:
    """One environment's pip.

    Args:
        command: what runs it, ``[python, "-m", "pip"]``.
        log: where all that it prints is written.
        options: added to each installation (where packages come from, where they go).
        progress: is told how far an installation is.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: IO[str],
        options: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self.options = list(options)
        self.progress = progress
        self.variables: dict[str, str | None] = {}
        """Environment variables of its own; None leaves one out."""

    def install(self, arguments: Sequence[str], *, step: str, count: int) -> None:
        """``pip install``; ``count`` is how many packages are expected, for the progress.

        Raises:
            DreamBoothError: pip failed; the message says why and what to do.
        """
        # An old pip, from before the locked one is in, does not know "raw".
        fixed = ["install", "--progress-bar", "raw" if self.progress else "off", "--no-input"]
        fixed += ["--only-binary", ":all:"]
        fixed += ["--no-warn-script-location", "--disable-pip-version-check"]
        self._run([*fixed, *self.options, *arguments], step, count)

    def install_pins(self, pins: Sequence[Pin], *arguments: str, step: str) -> None:
        """Installs these packages and no others, each from a file whose hash its pin holds.

        Where the file comes from does not matter then: mirrors need no trust.

        Raises:
            DreamBoothError: pip failed, or a file was another than the pin's.
        """
        with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
            file = Path(folder, "pins.txt")
            file.write_text("\n".join(pin.text for pin in pins) + "\n", encoding="utf-8")
            if len(pins) > 1 and not arguments and self._uv_installed(file):
                return
            checked = [*arguments, "--no-deps", "--require-hashes", "-r", str(file)]
            self.install(checked, step=step, count=len(pins))

    def _uv_installed(self, file: Path) -> bool:
        """Whether there is a uv, and it installed a file of pins: it is several times quicker.

        It checks the same hashes. Where it fails, for whatever reason, pip is asked after it: it
        knows all places that it is configured for, and says what is wrong in words that we know.
        One package alone is left to pip, which tells how far it is with a large file.
        """
        program = shutil.which("uv")
        if program is None or self.command[1:] != ["-m", "pip"] or "--target" in self.options:
            return False
        settings = self._settings()
        # A user's settings for uv might switch the hashes off, or lead elsewhere.
        variables: dict[str, str | None] = {
            name: None for name in os.environ if name.startswith("UV_") and name != "UV_CACHE_DIR"
        }
        if "cert" in settings:
            variables["SSL_CERT_FILE"] = settings["cert"]
        command = [program, "pip", "install", "--no-config", "--quiet", "--python", self.command[0]]
        command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode"]
        if settings.get("no-index", "0") not in ("0", "false", ""):
            command.append("--no-index")
        index = dict(zip(self.options, self.options[1:], strict=False)).get("--index-url")
        # As with pip any of the places may serve a file: the hashes say whether it is right.
        command += ["--index-strategy", "unsafe-best-match"]
        for option, places in (
            ("--default-index", index or settings.get("index-url", "")),
            ("--index", settings.get("extra-index-url", "")),
            ("--find-links", settings.get("find-links", "")),
        ):
            for place in places.split():
                command += [option, place]
        self.log.write(f"\n$ {' '.join(map(hide_credentials, command))} -r {file}\n")
        self.log.flush()
        return run([*command, "-r", str(file)], self.log, variables) == 0

    def install_unverified(
        self, requirement: str, index: str, pins: Sequence[Pin], *arguments: str, step: str
    ) -> list[str]:
        """Installs a package for which there are no hashes, from one index and nowhere else.

        The places that pip is configured for are left out: with no hash to check them by, they
        would have to be trusted. What it needs comes from that index too, at the version that
        ``pins`` say, if they do.

        Returns:
            ``SHA-256  file name`` of each file that was installed.

        Raises:
            DreamBoothError: pip failed.
        """
        settings, options = self._settings(), self.options
        reach = [key for key in ("cert", "client-cert", "proxy") if key in settings]
        kept = [f"--{key}={settings[key]}" for key in reach]
        target = options[options.index("--target") :] if "--target" in options else []
        alone = Pip(self.command, self.log, [*kept, "--index-url", index, *target], self.progress)
        alone.variables = {"PIP_CONFIG_FILE": os.devnull, **dict.fromkeys(PLACES)}
        with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
            report, limits = Path(folder, "report.json"), Path(folder, "limits.txt")
            limits.write_text("\n".join(pin.line for pin in pins) + "\n", encoding="utf-8")
            told = [*arguments, "--report", str(report), "-c", str(limits), requirement]
            alone.install(told, step=step, count=1)
            installed = json.loads(report.read_text(encoding="utf-8"))["install"]
        files = [item["download_info"] for item in installed]
        return [
            f"{file['archive_info']['hashes']['sha256']}  "
            + unquote(urlsplit(file["url"]).path).rpartition("/")[2]
            for file in files
        ]

    def link(self, project: Path) -> None:
        """Makes a project's command and metadata known here, its code staying where it is.

        Raises:
            DreamBoothError: pip failed.
        """
        fixed = ["install", "--no-deps", "--no-build-isolation", "--no-input", "--no-index"]
        fixed += ["--disable-pip-version-check", "--no-warn-script-location"]
        self._run([*fixed, "--editable", str(project)], "the dreambooth command")

    def check(self) -> None:
        """``pip check``: everything that a package needs is there.

        Raises:
            DreamBoothError: something is missing or does not fit.
        """
        self._run(["check", "--disable-pip-version-check"], "the check of the packages")

    def would_take(self, requirement: str, options: Sequence[str] = ()) -> str | None:
        """The address of the file that would be installed; None where there is none.

        Looks at the places that pip is configured for. Downloads metadata at most.
        """
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")
            command = [*self.command, "install", "--dry-run", "--no-deps", "--ignore-installed"]
            command += ["--only-binary", ":all:", "--no-input", "--quiet", "--report", str(report)]
            if run([*command, *options, requirement], self.log) or not report.is_file():
                return None
            installs = json.loads(report.read_text(encoding="utf-8")).get("install", [])
            return installs[0]["download_info"]["url"] if installs else None

    def configured(self) -> dict[str, str]:
        """Where pip is configured to look: ``index-url``, ``find-links``, ``no-index`` …"""
        places = ("index-url", "extra-index-url", "find-links", "no-index")
        return {key: value for key, value in self._settings().items() if key in places}

    def _settings(self) -> dict[str, str]:
        """pip's whole configuration, by the names of its options."""
        with started(
            [*self.command, "config", "list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as child:
            assert child.stdout is not None
            said = child.stdout.read()
        return dict(re.findall(r"^[^=]*\.([a-z-]+)='(.*)'$", said, re.MULTILINE))

    def _run(self, arguments: list[str], step: str, count: int = 0) -> None:
        self.log.write(f"\n$ pip {' '.join(map(hide_credentials, arguments))}\n")
        self.log.flush()
        output: list[str] = []
        follow = _Follower(count, self.progress) if self.progress else None
        with started(
            [*self.command, *arguments],
            self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if follow and follow.took(line):
                    continue
                output.append(line)
                self.log.write(line)
        self.log.flush()
        if child.returncode:
            if CANCELLED.search("".join(output)):
                raise KeyboardInterrupt
            what, do = explain("".join(output))
            # pip says the same of a package that is not there and of an index that is not.
            if "(from versions: none)" in "".join(output) and not self._reaches_index():
                what, do = UNREACHABLE
            raise DreamBoothError(f"{step}: {what}", do=do)

    def _reaches_index(self) -> bool:
        """Whether the index answers, with whatever."""
        configured = self.configured()
        if configured.get("no-index", "0") not in ("0", "false", ""):
            return True
        index = configured.get("index-url", "https://pypi.org/simple")
        if "--index-url" in self.options:
            index = self.options[self.options.index("--index-url") + 1]
        try:
            with urlopen(index.rstrip("/") + "/pip/", timeout=10):
                return True
        except URLError as error:
            # Answers of any kind, and certificates that only pip knows, come from a server.
            return isinstance(error, HTTPError) or isinstance(error.reason, ssl.SSLError)
        except (OSError, ValueError):
            return False


class _Follower:
    """Reads progress out of pip's lines."""

    def __init__(self, count: int, progress: Progress) -> None:
        self.count = count
        self.seen = 0
        self.progress = progress

    def took(self, line: str) -> bool:
        """Reports a line that is about progress; True where it says nothing else."""
        raw = re.match(r"Progress (\d+) of (\d+)", line)
        if raw:
            # With many packages their number tells more than the bytes of each.
            if self.count <= 1:
                self.progress(int(raw[1]), int(raw[2]), "B")
            return True
        if self.count > 1 and re.match(r"(Collecting|Processing|Requirement already) ", line):
            self.seen = min(self.seen + 1, self.count)
            self.progress(self.seen, self.count, "packages")
        return False


def explain(output: str) -> tuple[str, str]:
    """(what went wrong, what to do) from pip's output."""
    for pattern, what, do in FAILURES:
        if pattern.search(output):
            return what, do
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"the package index has no {missing[1]} for this Python and system",
            "If INDEX_URL, TORCH_INDEX_URL or pip's configuration names a mirror, name one that "
            "has it, or none, and run this again",
        )
    altered = ALTERED.search(output)
    if altered:
        place = hide_credentials((altered["place"] or "").partition("#")[0]) or "the package index"
        return (
            f"{altered['package']} is not the file that the lock names, but an altered or damaged "
            f"one; it was not installed ({place.rstrip(':')})",
            "Run this again; if that does not help, name another mirror, or none, with INDEX_URL "
            "and TORCH_INDEX_URL",
        )
    unhashed = re.search(r"Hashes are required in --require-hashes mode.*?\n\s+(\S+)", output, re.S)
    if unhashed:
        return f"the lock has no hash for {unhashed[1]}", "Take the lock as it was published"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line[6:].strip() for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip failed and said nothing"])[-1]
    return last, "See what else pip said, mend it, and run this again"


def hide_credentials(text: str) -> str:
    """An address without the name and password that it may hold."""
    if "@" not in text or "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
