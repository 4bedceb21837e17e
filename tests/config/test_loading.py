"""Layers, types and, above all, one clear line for each mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional  # noqa: UP035 - both spellings must work

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.config.fields import option, section
from dreambooth_core.config.loading import dump, load, validate
from dreambooth_core.config.shapes import Member, members
from dreambooth_core.errors import UserError
from dreambooth_core.options import TrainConfig


@dataclass
class Pictures:
    images: str = option(label="Images", help="The folder.", path="folder")
    prompt: str = option("", label="Prompt", help="What they show.")
    repeats: int = option(1, label="Repeats", help="How often.", between=(1, None))


@dataclass
class Speed:
    rate: float = option(1e-4, label="Rate", help="Of learning.", between=(0, 1))
    name: str = option("adamw", label="Name", help="Which.", choices=("adamw", "lion", "off"))
    betas: List[float] = option(factory=lambda: [0.9, 0.999], label="Betas", help="Moments.")  # noqa: UP006
    steps: Optional[int] = option(None, label="Steps", help="None: by epochs.", between=(1, None))  # noqa: UP045
    rank: int | None = option(None, label="Rank", help="Of the adapter.", unit="columns")


@dataclass
class Root:
    """All of it."""

    base: str = option("pocket", label="Base", help="Where it starts.", path="any")
    vae: str = option("", label="VAE", help="A file.", path="file")
    flip: bool = option(False, label="Flip", help="Mirrored.")
    speed: Speed = section(Speed, label="Speed", help="How fast.")
    concepts: List[Pictures] = option(factory=list, label="Concepts", help="What.")  # noqa: UP006
    weights: Dict[str, float] = option(factory=dict, label="Weights", help="By name.")  # noqa: UP006


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_each_layer_goes_over_the_one_before(tmp_path: Path) -> None:
    preset = write(tmp_path, "speed: {rate: 0.1, name: lion, rank: 4}\nflip: yes", "preset.yaml")
    first = write(tmp_path, "speed: {rate: 0.2, steps: 7}", "first.yaml")
    second = write(tmp_path, "speed: {steps: 8}", "second.yaml")
    config = load(Root, preset=preset, files=[first, second], overrides=["speed.rank=16"])
    assert isinstance(config, Root)
    assert config.flip is True
    assert config.speed == Speed(rate=0.2, name="lion", steps=8, rank=16)


def test_lists_are_replaced_and_sections_merged(tmp_path: Path) -> None:
    first = write(tmp_path, "concepts: [{images: a}, {images: b}]\nweights: {a: 1}", "1.yaml")
    second = write(tmp_path, "concepts: [{images: c}]\nweights: {b: 2}", "2.yaml")
    config = load(Root, files=[first, second])
    assert [Path(each.images).name for each in config.concepts] == ["c"]
    assert config.weights == {"a": 1.0, "b": 2.0}


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "concepts: [{images: a}]")
    config = load(
        Root,
        files=[path],
        overrides=[
            'concepts[0].prompt=a photo: "sks" = dog',
            "concepts.1.images=b",
            "concepts[1].repeats=3",
            "speed.betas=[0.5, 0.6]",
            "weights.x=2",
        ],
    )
    assert config.concepts[0].prompt == 'a photo: "sks" = dog'
    assert config.concepts[1].repeats == 3
    assert config.speed.betas == [0.5, 0.6]
    assert config.weights == {"x": 2.0}
    assert load(Root, overrides=["concepts=[{images: d, repeats: 2}]"]).concepts[0].repeats == 2
    assert load(Root, overrides=["speed={rate: 0.5}"]).speed == Speed(rate=0.5)


def test_values_are_read_by_the_type_of_their_field(tmp_path: Path) -> None:
    """What YAML 1.1 turns into something else: off, 007, 1e-4, 16:9, dates, no."""
    text = """
    speed: {rate: 1e-3, name: off, steps: 010, rank: 4.0}
    flip: on
    concepts:
    - {images: 007, prompt: no}
    - {images: x, prompt: 16:9}
    - {images: x, prompt: 2024-01-01}
    """
    config = load(Root, files=[write(tmp_path, text)])
    assert (config.speed.rate, config.speed.name, config.speed.steps) == (1e-3, "off", 10)
    assert (config.speed.rank, config.flip) == (4, True)
    assert Path(config.concepts[0].images).name == "007"
    assert [each.prompt for each in config.concepts] == ["no", "16:9", "2024-01-01"]


def test_null_and_empty_headings(tmp_path: Path) -> None:
    config = load(Root, files=[write(tmp_path, "speed:\n  # rate: 3\nweights:\n")])
    assert config == Root()
    assert load(Root, files=[write(tmp_path, "# nothing\n")]) == Root()
    assert load(Root, overrides=["speed.steps=5", "speed.steps=null"]).speed.steps is None


def test_json_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"flip": True}).encode())
    assert load(Root, files=[path]).flip


def test_paths_are_relative_to_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "configs", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "org").mkdir()
    (folder / "org" / "there").mkdir()
    monkeypatch.chdir(elsewhere)
    path = write(folder, "vae: ../v.pt\nconcepts: [{images: dog, prompt: dog}]")
    config = load(Root, files=[path], overrides=["concepts[1].images=cat"])
    assert config.vae == str(tmp_path / "v.pt")
    assert config.concepts[0].images == str(folder / "dog")
    assert config.concepts[0].prompt == "dog"
    assert config.concepts[1].images == str(elsewhere / "cat")
    for written, meant in {
        "pocket": "pocket",
        "org/name": "org/name",
        "org/there": str(folder / "org" / "there"),
        "./pocket": str(folder / "pocket"),
        str(tmp_path / "x"): str(tmp_path / "x"),
    }.items():
        assert load(Root, files=[write(folder, f"base: {written}")]).base == meant


def test_a_default_path_means_the_same_when_it_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Output:
        folder: str = option("runs", label="Runs", help="Where.", path="folder")
        base: str = option("pocket", label="Base", help="Which.", path="any")
        none: str = option("", label="None", help="Nothing.", path="file")

    monkeypatch.chdir(tmp_path)
    config = load(Output)
    assert config == Output(str(tmp_path / "runs"), "pocket", "")
    assert load(Output, files=[write(tmp_path / "..", dump(config), "again.yaml")]) == config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nspede:\n  rate: 1", "my.yaml:2: unknown key spede. Did you mean speed?"),
        ("speed:\n  raet: 1", "my.yaml:2: unknown key speed.raet. Did you mean rate?"),
        ("rate: 1", "my.yaml:1: unknown key rate. Did you mean speed.rate?"),
        ("prompt: x", "my.yaml:1: unknown key prompt. Did you mean concepts[].prompt?"),
        (
            "concepts:\n- images: a\n  repeat: 2",
            "my.yaml:3: unknown key concepts[0].repeat. Did you mean repeats?",
        ),
        ("speed:\n  rate: fast", "my.yaml:2: speed.rate: 'fast' is not a number"),
        ("speed: {rate: .inf}", "my.yaml:1: speed.rate: '.inf' is not a number"),
        ("speed: {steps: 2.5}", "my.yaml:1: speed.steps: '2.5' is not a whole number"),
        ("flip: 2", "my.yaml:1: flip: '2' is not true or false"),
        (
            "\n\nspeed:\n  rate: 7",
            "my.yaml:4: speed.rate: 7.0 is too large. Allowed: 0 to 1.",
        ),
        (
            "concepts: [{images: a, repeats: 0}]",
            "my.yaml:1: concepts[0].repeats: 0 is too small. Allowed: 1 and more.",
        ),
        (
            "speed: {name: AdamW}",
            "my.yaml:1: speed.name: 'AdamW' is not a choice. Did you mean adamw? "
            "Choose from adamw, lion, off.",
        ),
        ("flip: {a: 1}", "my.yaml:1: flip is keys with values. Expected: true or false."),
        ("speed: 3", "my.yaml:1: speed is '3'. Expected: a section: keys with values."),
        ("concepts: dog", "my.yaml:1: concepts is 'dog'. Expected: a list, like [a, b]."),
        ("speed: {betas: 3}", "my.yaml:1: speed.betas is '3'. Expected: a list, like [a, b]."),
        ("speed: {rate: null}", "my.yaml:1: speed.rate needs a value. Expected: a number."),
        ("- a", "my.yaml:1: the configuration is a list. Expected: a section: keys with values."),
        ("flip: true\nflip: false", "my.yaml:2: flip is set twice"),
        ("speed: {rate: 1, rate: 1}", "my.yaml:1: speed.rate is set twice"),
        ("weights: {a: 1, a: 2}", "my.yaml:1: weights.a is set twice"),
        (
            "base: ${oc.env:HOME}",
            "my.yaml:1: base: '${oc.env:HOME}' is an interpolation, which is not supported",
        ),
        (
            "base: !!python/object/apply:os.getcwd []",
            "my.yaml:1: base: the tag tag:yaml.org,2002:python/object/apply:os.getcwd "
            "is not used here",
        ),
        (
            "<<: {flip: true}",
            "my.yaml:1: unknown key <<. Known: base, vae, flip, speed, concepts, weights.",
        ),
        (
            "concepts: [{prompt: x}]",
            "my.yaml:1: concepts[0].images must be set. Set it in the file or as key=value.",
        ),
        ("\nflip: [1", "my.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "speed:\n\trate: 1",
            "my.yaml:2: not valid YAML: found character '\\t' that cannot start any token. "
            "Indent with spaces, not tabs.",
        ),
        (
            "base: a photo: of",
            "my.yaml:1: not valid YAML: mapping values are not allowed here. "
            "Put a text that contains ': ' in quotes.",
        ),
        (
            'base: "C:\\dog"',
            "my.yaml:1: not valid YAML: found unknown escape character 'd'. "
            "Put a Windows path in 'single quotes'.",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(Root, files=[write(tmp_path, text)])
    assert caught.value.line == str(tmp_path) + os.sep + line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("foo", "'foo' sets nothing. Write key=value."),
        ("=1", "'=1' sets nothing. Write key=value."),
        ("speed..rate=1", "'speed..rate' is not a key. Keys look like a.b or a[0].b."),
        ("sped.rate=1", "unknown key sped. Did you mean speed?"),
        ("speed.rate=x", "speed.rate: 'x' is not a number"),
        ("speed.rate=2", "speed.rate: 2.0 is too large. Allowed: 0 to 1."),
        ("speed.rate.x=2", "speed.rate is a single value and has no 'x'"),
        (
            "concepts.images=a",
            "concepts is a list and has no 'images'. Its items are concepts[0], concepts[1] …",
        ),
        ("concepts[1].images=a", "concepts[1] would leave a gap: concepts has 0 items"),
        ("speed=3", "speed is '3'. Expected: a section: keys with values."),
        ("speed.betas=[0.1, x]", "speed.betas[1]: 'x' is not a number"),
        (
            "concepts[0].prompt=x",
            "concepts[0].images must be set. Set it in the file or as key=value.",
        ),
        ("base=???", "base: '???' is an interpolation, which is not supported"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(Root, overrides=[override])
    assert caught.value.line == "command line: " + line


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "", "dog.yaml")
    with pytest.raises(UserError, match=r"no such configuration file\. Did you mean dog\.yaml\?"):
        load(Root, files=[tmp_path / "dgo.yaml"])
    with pytest.raises(UserError, match="no such configuration file"):
        load(Root, files=[tmp_path / "no" / "dog.yaml"])
    with pytest.raises(UserError, match="a folder, not a file"):
        load(Root, files=[tmp_path])
    (tmp_path / "16.yaml").write_bytes("flip: true".encode("utf-16"))
    with pytest.raises(UserError, match=r"not a text in UTF-8\. Save it as UTF-8"):
        load(Root, files=[tmp_path / "16.yaml"])


def test_presets_are_found_by_name() -> None:
    assert load(TrainConfig, preset="person-lora-sd1").run.steps == 800
    with pytest.raises(UserError, match=r"unknown preset 'persn.*Did you mean person-lora-sd1\?"):
        load(TrainConfig, preset="persn-lora-sd1")


def test_a_configuration_made_in_code_is_validated_too() -> None:
    with pytest.raises(UserError, match=r"speed\.rate: -1 is too small\. Allowed: 0 to 1"):
        validate(Root(speed=Speed(rate=-1)))
    validate(Root())


def test_a_section_may_check_itself() -> None:
    @dataclass
    class Picky:
        low: int = option(0, label="Low", help="Low.")
        high: int = option(1, label="High", help="High.")

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(UserError, match="low is above high"):
        load(Picky, overrides=["low=3"])


TEXTS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n\r\udcff"), max_size=12
).filter(lambda text: "${" not in text and text != "???")


@settings(max_examples=150, deadline=None)
@given(
    prompt=TEXTS,
    names=st.dictionaries(TEXTS.filter(bool), st.floats(allow_nan=False, allow_infinity=False)),
    rate=st.floats(0, 1),
    steps=st.none() | st.integers(1),
    betas=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    comments=st.booleans(),
)
def test_what_is_dumped_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str,
    names: dict[str, float],
    rate: float,
    steps: int | None,
    betas: list[float],
    comments: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    config = Root(
        speed=Speed(rate=rate, steps=steps, betas=betas),
        concepts=[Pictures(images=str(folder / "a: b"), prompt=prompt), Pictures(images="")],
        weights=names,
    )
    path = folder / "dumped.yaml"
    path.write_text(dump(config, help=comments), encoding="utf-8")
    assert load(Root, files=[path]) == config


def test_dump_is_yaml_for_other_readers_too() -> None:
    import yaml

    config = Root(speed=Speed(rate=1e-5), base="no", concepts=[Pictures(images="1e3")])
    read = yaml.safe_load(dump(config, help=True))
    assert read["speed"]["rate"] == 1e-5
    assert read["base"] == "no"
    assert read["concepts"][0]["images"] == "1e3"
    assert "# Where it starts." in dump(config, help=True)
    assert "#" not in dump(config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"base: " + b"x" * 10_001, "10,001 characters"),
        (b'base: "a\\0b"', "control character"),
        (b'base: "a\\e[31mb"', "control character"),
        (b'base: "a\\ud800"', "control character"),
        (b"concepts:\n" + b"- {images: a}\n" * 1_001, "1,001 items"),
        (b"weights: {" + b", ".join(b"k%d: 1" % n for n in range(1_001)) + b"}", "1,001 keys"),
        (b"base: a\n#" + b" " * 500_000, "too large"),
        (b"concepts: " + b"[" * 30_000, "nested too deeply"),
    ],
)
def test_what_no_person_writes_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(Root, files=[path])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "my.yaml")
    with pytest.raises(UserError, match="a pipe"):
        load(Root, files=[tmp_path / "my.yaml"])


def test_a_home_that_is_nobodys_is_a_path_like_any_other() -> None:
    assert load(Root, overrides=["vae=~nobody-at-all/x"]).vae.endswith("x")


def test_every_number_of_a_run_has_bounds() -> None:
    def numbers(schema: type, prefix: str) -> Iterator[tuple[str, Member]]:
        for name, member in members(schema).items():
            shape = member.shape.item or member.shape
            if shape.schema:
                yield from numbers(shape.schema, f"{prefix}{name}.")
            elif shape.kind in ("int", "float"):
                yield prefix + name, member

    found = dict(numbers(TrainConfig, ""))
    assert len(found) > 60
    for key, member in found.items():
        assert member.info.minimum is not None, key
        assert member.info.maximum is not None, key


def test_no_number_is_infinite_or_none() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not a finite number"):
            validate(Root(speed=Speed(rate=value)))
