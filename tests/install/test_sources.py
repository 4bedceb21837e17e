"""What the user configured wins over the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.environment.sources import PYPI, package_place, torch_source
from dreambooth_core.environment.torch_builds import BUILDS


class FakePip:
    """Answers what pip would take."""

    def __init__(self, answer: str | None = None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def would_take(self, requirement: str, options: Any = ()) -> str | None:
        """Remembers the question."""
        self.asked.append(requirement)
        return self.answer


def source(pip: Any, build: str, environ: dict[str, str], configured: dict[str, str]) -> Any:
    """torch's source on Linux."""
    return torch_source(pip, BUILDS[build], "linux", environ, configured)


def test_torch_index_url_wins_and_decides_the_build() -> None:
    environ = {"TORCH_INDEX_URL": "https://me:pw@mirror.example/cu130", "INDEX_URL": "https://b"}
    found = source(FakePip(), "cpu", environ, {"index-url": "https://c"})
    assert found.requirement == "torch==2.13.0"
    assert found.options == ("--index-url", "https://me:pw@mirror.example/cu130")
    assert found.where == "https://mirror.example/cu130"


def test_a_folder_of_wheels_with_the_build_is_used(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(bytes(3_000_000))
    pip = FakePip(wheel.as_uri())
    found = source(pip, "cpu", {}, {"find-links": str(tmp_path)})
    assert pip.asked == ["torch==2.13.0+cpu"]
    assert found.options == ()
    assert found.where == f"{tmp_path} (on this machine)"
    assert found.megabytes == 3


def test_a_mirror_without_the_build_leads_to_pytorchs_index() -> None:
    found = source(FakePip(), "cpu", {"INDEX_URL": "https://mirror.example/simple"}, {})
    assert found.options == ("--index-url", "https://download.pytorch.org/whl/cpu")


@pytest.mark.parametrize("build", ["cpu", "cu126", "rocm7.2", "xpu"])
def test_nothing_configured_nobody_is_asked(build: str) -> None:
    pip = FakePip()
    found = source(pip, build, {}, {})
    assert pip.asked == []
    assert found.where == f"https://download.pytorch.org/whl/{build}"


def test_the_build_of_the_package_index_comes_through_any_mirror() -> None:
    found = source(FakePip(), "cu130", {"INDEX_URL": "https://mirror.example/simple"}, {})
    assert found.options == ("--index-url", "https://mirror.example/simple")
    assert source(FakePip(), "cu130", {}, {}).where == PYPI


def test_pytorchs_own_index_is_known_by_its_address() -> None:
    known = source(
        FakePip(), "cpu", {"TORCH_INDEX_URL": "https://download.pytorch.org/whl/cu126"}, {}
    )
    assert known.official and known.versions == ("2.13.0+cu126",)
    other = source(
        FakePip(), "cpu", {"TORCH_INDEX_URL": "https://download.pytorch.org/whl/cu999"}, {}
    )
    assert other.official and other.versions == ()
    for address in (
        "http://download.pytorch.org/whl/cpu",
        "https://download.pytorch.org.evil.example/whl/cpu",
        "https://me@download.pytorch.org/whl/cpu",
        "https://mirror.example/cu126",
    ):
        mirror = source(FakePip(), "cpu", {"TORCH_INDEX_URL": address}, {})
        assert not mirror.official
        assert {"2.13.0", "2.13.0+cpu", "2.13.0+cu126", "2.13.0+cu130"} <= set(mirror.versions)


def test_places_in_words() -> None:
    assert package_place({}, {}) == PYPI
    assert package_place({"INDEX_URL": "https://a"}, {"index-url": "https://b"}) == "https://a"
    assert package_place({}, {"index-url": "https://b"}) == "https://b"
    assert package_place({}, {"find-links": "/w"}).startswith(f"{PYPI} and the other places")
    assert package_place({}, {"find-links": "/w", "no-index": "1"}) == "/w"
