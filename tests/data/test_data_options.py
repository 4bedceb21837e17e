"""The options are plain dataclasses that OmegaConf takes and a bare Python can import."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dreambooth_core.data.options import ConceptOptions, DataOptions, PriorOptions

KINDS = [ConceptOptions, DataOptions, PriorOptions]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_says_what_it_is(kind):
    for field in dataclasses.fields(kind):
        info = field.metadata["info"]
        assert info.label
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
