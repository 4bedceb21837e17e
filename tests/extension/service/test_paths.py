"""Nothing outside the allowed folders can be named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.fake_host import FakeHost
from PIL import Image

from dreambooth_core.commands.options import READ, WRITTEN
from dreambooth_core.errors import UserError
from extension.service.paths import Paths, free_name, path_keys


@pytest.fixture
def confined(host: FakeHost) -> Paths:
    return Paths(host.folders, anywhere=False)


KINDS = ("images", *READ, *WRITTEN)

OUTSIDE = [
    "/etc/passwd",
    "/etc/there is no such file",
    "../outside",
    "models/../../outside",
    "models/Lora/../../../outside",
    "//server/share/x",
    "\\\\server\\share\\x",
    "~/pictures",
    "",
    "a\0b",
    "x" * 5000,
    "a/" * 3000,
    "scripts/x.safetensors",
    "extensions/x.safetensors",
    ".",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", OUTSIDE)
def test_what_leads_out_is_refused(confined: Paths, path: str, kind: str) -> None:
    for ask in (confined.read, confined.write):
        with pytest.raises(UserError):
            ask(path, kind, "the file")


def test_a_sibling_that_begins_alike_is_outside(confined: Paths, host: FakeHost) -> None:
    with pytest.raises(UserError):
        confined.write(f"{host.folders().loras}-of-another/x", "adapter result", "it")


def test_what_is_absent_and_what_is_forbidden_get_one_answer(
    confined: Paths, host: FakeHost, tmp_path: Path
) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            confined.read(path, "any", "the file")
        return caught.value.what

    forbidden = tmp_path / "secret.safetensors"
    answers = {said(forbidden), said(host.folders().loras / "none.safetensors")}
    forbidden.touch()
    answers.add(said(forbidden))
    assert len(answers) == 1


@pytest.mark.parametrize("path", ["//server/share/x", "\\\\server\\share", "/etc/passwd", "../x"])
def test_nothing_is_touched_before_it_is_confined(
    confined: Paths, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows sends a password hash to the server of a path that it only looks at."""
    real = os.path.realpath
    touched: list[str] = []

    def look(given: object, **options: object) -> str:
        touched.append(str(given))
        return real(given, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os.path, "realpath", look)
    with pytest.raises(UserError):
        confined.read(path, "any", "the file")
    assert not [each for each in touched if "server" in each or "passwd" in each]


def test_results_lie_in_folders_of_their_kind(confined: Paths, host: FakeHost) -> None:
    here = host.folders()
    for kind, right in {
        "adapter result": [here.loras, here.runs],
        "model result": [here.checkpoints, here.diffusers, here.runs],
        "result": [here.loras, here.checkpoints, here.diffusers, here.runs],
    }.items():
        for folder in (here.loras, here.checkpoints, here.diffusers, here.runs, here.uploads):
            if folder in right:
                assert confined.write(folder / "x", kind, "it") == folder.resolve() / "x"
            else:
                with pytest.raises(UserError, match="not in a folder"):
                    confined.write(folder / "x", kind, "it")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_before_it_is_decided(
    confined: Paths, host: FakeHost, tmp_path: Path
) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "x.safetensors").touch()
    link = host.folders().loras / "link"
    link.symlink_to(outside)
    for ask in (confined.read, confined.write):
        with pytest.raises(UserError, match="not in a folder"):
            ask(link / "x.safetensors", "adapter", "the file")
    loop = host.folders().loras / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="not in a folder"):
        confined.read(loop, "adapter", "the file")
    # A folder of the host's that is a link itself is where it leads to.
    host.allowed = (link,)
    assert confined.read(link / "x.safetensors", "adapter", "it") == outside / "x.safetensors"
    host.allowed = ()
    # And a file that the host lists is its user's choice.
    listing = Paths(host.folders, anywhere=False, listed=lambda: [link / "x.safetensors"])
    assert listing.read(link / "x.safetensors", "adapter", "it") == outside / "x.safetensors"


def test_relative_paths_count_from_the_hosts_data(confined: Paths, host: FakeHost) -> None:
    real = Path(os.path.realpath(host.root))
    (host.folders().loras / "a.safetensors").touch()
    found = confined.read("models/Lora/a.safetensors", "adapter", "it")
    assert found == real / "models/Lora/a.safetensors"


def test_images_by_what_they_are(confined: Paths, host: FakeHost, tmp_path: Path) -> None:
    """A caption is written beside a real image in an image folder, and beside nothing else."""
    folder = host.folders().uploads / "dog"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    (folder / "c.png").mkdir()
    assert confined.image(folder / "a.png") == folder.resolve() / "a.png"
    Image.new("RGB", (8, 8)).save(host.folders().loras / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for other in (
        *(folder / name for name in ("b.png", "c.png", "d.png", "..", ".")),
        host.folders().loras / "a.png",
        tmp_path / "a.png",
    ):
        with pytest.raises(UserError, match="is not there"):
            confined.image(other)


def test_the_page_of_a_host_for_one_may_read_anything(host: FakeHost, tmp_path: Path) -> None:
    open_page = Paths(host.folders, anywhere=True)
    assert open_page.read(tmp_path, "images", "it") == Path(os.path.realpath(tmp_path))
    assert not open_page.settle({"concepts[0].images": str(tmp_path)})[1]
    with pytest.raises(UserError, match="not in a folder"):
        open_page.write(tmp_path / "x", "result", "it")


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"concepts[0].images": "/etc", "run.seed": 1}, ["concepts[0].images"]),
        ({"concepts": [{"images": "/etc"}, {"class_images": "/"}]}, None),
        ({"base.model": "/etc/model.safetensors"}, ["base.model"]),
        ({"base.vae": "../../x.safetensors"}, ["base.vae"]),
        ({"base.text_encoders": ["/etc/x.safetensors"]}, ["base.text_encoders"]),
        ({"base.text_encoders[0]": "/etc/x.safetensors"}, ["base.text_encoders"]),
        ({"base.tokenizer": "/etc/tokenizer"}, ["base.tokenizer"]),
        ({"method.init_from": "/etc/x.safetensors"}, ["method.init_from"]),
        ({"method.training_adapter": "/etc/x.safetensors"}, ["method.training_adapter"]),
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
    folder = host.folders().uploads / "dog"
    folder.mkdir(parents=True)
    told = "models/../outputs/dreambooth/uploads/dog"
    settled, problems = confined.settle({"concepts[0].images": told, "run.seed": 1})
    assert settled == {"concepts[0].images": os.path.realpath(folder), "run.seed": 1}
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
