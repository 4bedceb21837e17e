"""Measures of images and their intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreambooth_core.errors import UserError
from dreambooth_core.evaluation.measures import Measure, interval, measure
from dreambooth_core.evaluation.page import Judged, page
from dreambooth_core.evaluation.protocol import PROTOCOLS, prompts_for, read_prompts, tasks


class Colours:
    """Images by their mean colour, and texts by the colour that they name."""

    def identities(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = [one.convert("RGB").resize((1, 1)).getpixel((0, 0)) for one in pictures]
        return F.normalize(torch.tensor(pixels).float(), dim=-1)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.identities(images)

    def captions(self, texts: Sequence[str]) -> Tensor:
        named = [[1.0, 0, 0] if "red" in text else [0, 0, 1.0] for text in texts]
        return torch.tensor(named)


def drawn(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


@pytest.mark.parametrize("damaged", ["identities", "images", "captions"])
def test_what_is_no_number_is_no_judgement(damaged: str) -> None:
    encoders = Colours()
    setattr(encoders, damaged, lambda given: torch.full((len(given), 3), torch.nan))
    wanted = tasks(("{}, red",), "sks ball", "", 1, 0)
    with pytest.raises(UserError, match="an encoder is damaged"):
        measure(encoders, wanted, [drawn("red")], [drawn("red")])


def test_each_measure_says_what_it_means() -> None:
    wanted = tasks(("{}, red", "{}, blue"), "sks ball", "a ball", 2, 0)
    own = ["red", "red", "blue", "red"]
    classes = ["red", "blue"] * 4
    images = [drawn(colour) for colour in (*own, *classes)]
    found = measure(Colours(), wanted, images, [drawn("red")])
    assert {name: m.value for name, m in found.items()} == {
        "subject": 0.75,  # three of four look like the real one
        "clip_i": 0.75,
        "clip_t": 0.75,  # one of the two that should be blue is not
        "preservation": 0.5,
        "diversity": round(32 / 56, 4),  # of all pairs, those of two colours
    }
    assert found["subject"].images == 4
    assert found["subject"].low < 0.75 < found["subject"].high
    plain = measure(Colours(), wanted[:4], images[:4], [drawn("red")])
    assert set(plain) == {"subject", "clip_i", "clip_t"}
    style = measure(Colours(), wanted[:4], images[:4], [drawn("red")], style=True)
    assert style == {"style": plain["clip_i"], "clip_t": plain["clip_t"]}


def test_an_interval_is_that_of_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.randn(400) * 2 + 5

    def mean(of: Tensor, rows: Tensor) -> Tensor:
        return of[rows].mean()

    found = interval(values, mean)
    error = 1.96 * float(values.std()) / 400**0.5
    assert found.value == pytest.approx(float(values.mean()), abs=1e-3)
    assert found.high - found.low == pytest.approx(2 * error, rel=0.1)
    assert interval(values, mean) == found
    assert interval(torch.ones(1), mean) == Measure(1.0, 1.0, 1.0, 1)


def test_the_protocol_has_the_papers_scheme() -> None:
    for kind, prompts in PROTOCOLS.items():
        assert len(set(prompts)) == 25, kind
        assert all(prompt.count("{}") == 1 for prompt in prompts)
    shared = set(PROTOCOLS["thing"]) & set(PROTOCOLS["living"])
    assert len(shared) == 15  # ten places and five changes; accessories are for the living
    wanted = tasks(PROTOCOLS["living"], "a sks dog", "a dog", 4, 7)
    assert len(wanted) == 25 * 4 + 50
    assert len({task.seed for task in wanted}) == len(wanted)
    assert all("sks" not in task.described for task in wanted)
    assert not any(task.of_class for task in tasks(PROTOCOLS["living"], "sks", "", 1, 0))


def test_a_base_may_bring_its_own_prompts(tmp_path: Path) -> None:
    assert prompts_for("thing", tmp_path) == PROTOCOLS["thing"]
    (tmp_path / "prompts.json").write_text(json.dumps(["{} on white"]))
    assert prompts_for("thing", tmp_path) == ("{} on white",)
    for wrong in ("[]", "{", '["no place"]', "[1]"):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UserError, match="prompts"):
            read_prompts(tmp_path / "wrong.json")


def test_the_page_stands_alone() -> None:
    wanted = tasks(("{} <b>",), "sks", "", 1, 0)
    model = Judged("base & co", {"subject": Measure(0.5, 0.4, 0.6, 1)}, [drawn("red")], 0.25, True)
    text = page("Title", {"subject": "sks"}, [drawn("blue")], wanted, [model], ["a note"])
    assert "base &amp; co" in text
    assert "sks &lt;b&gt;" in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert "0.400 to 0.600" in text and "0.2500" in text and "a note" in text
    assert "http" not in text and "<script" not in text
