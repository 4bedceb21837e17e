"""Nothing outside the allowed folders can be named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.fake_host import FakeHost

from dreambooth_core.errors import UserError
from extension.service.paths import Paths, free_name, path_keys


@pytest.fixture
def confined(host: FakeHost) -> Paths:
    return Paths(host.folders, anywhere=False)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside",
        "models/../../outside",
        "//server/share",
        "\\\\server\\share",
        "~/pictures",
        "",
        "a\0b",
        "models/Lora-of-another",  # begins like an allowed folder's sibling
    ],
)
def test_what_leads_out_is_refused(confined: Paths, host: FakeHost, path: str) -> None:
    if path.startswith("models/Lora-"):
        path = str(host.root) + "-of-another/x"
    with pytest.raises(UserError):
        confined.inside(path, "the file")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_before_it_is_decided(
    confined: Paths, host: FakeHost, tmp_path: Path
) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    link = host.folders().loras / "link"
    link.symlink_to(outside)
    with pytest.raises(UserError, match="not in a folder"):
        confined.inside(link / "x.safetensors", "the file")
    # A folder of the host's that is a link itself is where it leads to.
    host.allowed = (link,)
    assert confined.inside(link / "x", "the file") == outside / "x"


def test_relative_paths_count_from_the_hosts_data(confined: Paths, host: FakeHost) -> None:
    real = Path(os.path.realpath(host.root))
    assert confined.inside("models/Lora/a.safetensors", "it") == real / "models/Lora/a.safetensors"


def test_the_page_of_a_host_for_one_may_name_anything(host: FakeHost, tmp_path: Path) -> None:
    open_page = Paths(host.folders, anywhere=True)
    assert open_page.inside(tmp_path, "it") == Path(os.path.realpath(tmp_path))
    assert not open_page.settle({"concepts[0].images": str(tmp_path)})[1]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"concepts[0].images": "/etc", "run.seed": 1}, ["concepts[0].images"]),
        ({"concepts": [{"images": "/etc"}, {"class_images": "/"}]}, None),
        ({"base.model": "/etc/model.safetensors"}, ["base.model"]),
        ({"base.vae": "../../x.safetensors"}, ["base.vae"]),
        ({"log.folder": "../../../x"}, ["log.folder"]),
        ({"log.folder": "/tmp/x"}, ["log.folder"]),
        ({"data.cache_folder": "/tmp"}, ["data.cache_folder"]),
        ({"prior.folder": "/tmp"}, ["prior.folder"]),
        ({"run.output": "/tmp"}, ["run.output"]),
        ({"base.model": "runwayml/stable-diffusion-v1-5", "log.folder": "board"}, []),
        ({"base.model": "pocket"}, []),
    ],
)
def test_configurations_are_looked_through(
    confined: Paths, values: dict[str, object], keys: list[str] | None
) -> None:
    settled, problems = confined.settle(values)
    found = [problem.key for problem in problems]
    assert found == (["concepts[0].images", "concepts[1].class_images"] if keys is None else keys)
    if not found:
        assert settled == values


def test_what_was_looked_at_is_what_is_used(confined: Paths, host: FakeHost) -> None:
    """The engine has another current folder, and reads ``~``."""
    settled, problems = confined.settle({"concepts[0].images": "models/../dog", "run.seed": 1})
    real = os.path.realpath(host.root)
    assert settled == {"concepts[0].images": os.path.join(real, "dog"), "run.seed": 1}
    assert not problems


@pytest.mark.parametrize(
    "values", [{"run": 1, "run.seed": 2}, {"concepts[999999999].images": "x"}, {"a..b": 1}]
)
def test_keys_that_make_no_sense(confined: Paths, values: dict[str, object]) -> None:
    with pytest.raises(UserError):
        confined.settle(values)


def test_every_field_that_is_a_path_is_known() -> None:
    assert {"concepts[].images", "data.cache_folder", "run.output"} <= path_keys()


def test_free_names(tmp_path: Path) -> None:
    (tmp_path / "a.x").touch()
    (tmp_path / "a-2.x").touch()
    assert free_name(tmp_path, "a", ".x").name == "a-3.x"
