"""The options are plain dataclasses that OmegaConf takes and a bare Python can import."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dreambooth_core.data.concept_options import ConceptOptions, PriorOptions
from dreambooth_core.data.options import DataOptions
from dreambooth_core.errors import UserError

KINDS = [ConceptOptions, DataOptions, PriorOptions]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_says_what_it_is(kind):
    for field in dataclasses.fields(kind):
        info = field.metadata["info"]
        assert info.help
        if info.choices is not None:
            assert getattr(kind(), field.name) in info.choices


@pytest.mark.parametrize("kind", KINDS)
def test_a_structured_configuration_takes_them(kind):
    config = OmegaConf.structured(kind)
    assert OmegaConf.to_object(config) == kind()


def test_no_choice_is_a_word_that_yaml_reads_as_something_else():
    for kind in KINDS:
        for field in dataclasses.fields(kind):
            for choice in field.metadata["info"].choices or ():
                assert OmegaConf.create(f"x: {choice}").x == choice


def test_a_bare_python_can_import_them():
    code = "import dreambooth_core.data.options, dreambooth_core.data.plan"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        check=True,
        cwd=Path(__file__).parents[2],
    )


def test_further_resolutions_have_buckets_of_their_own():
    options = DataOptions(resolution=512, resolutions=[768, 256])
    assert [each.fixed_size() for each in options.by_resolution()] == [
        (512, 512),
        (768, 768),
        (256, 256),
    ]
    assert options.largest_size() == (768, 768)
    assert DataOptions(resolution=512, height=640).largest_size() == (640, 512)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"resolutions": [500]}, "no side"),
        ({"resolutions": [8]}, "no side"),
        ({"resolutions": [8192]}, "no side"),
        ({"resolution": 768, "resolutions": [768]}, "twice"),
        ({"resolutions": [640, 640]}, "twice"),
        ({"height": 640, "resolutions": [768]}, "one height and width"),
    ],
)
def test_further_resolutions_that_cannot_be(given, what):
    with pytest.raises(UserError, match=what) as refused:
        DataOptions(**given).largest_size()
    assert refused.value.where == "data.resolutions"


def test_what_has_no_end_is_kept_nowhere():
    assert DataOptions(rotation=3.0).has_finite_views
    assert not DataOptions(rotation=3.0, variants=0).has_finite_views
    assert DataOptions(variants=0).has_finite_views
    assert not DataOptions(crop="random", crop_positions=0).has_finite_views
