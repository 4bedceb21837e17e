"""A base from the hub is known by its commit, and a resumed run stays with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.tiny import tiny_sd1

from dreambooth_core.bases.locate import commit_of, is_on_hub, locate
from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base, pinned
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.trainer.state import TrainState, commit_in, refuse_changes, save_state

OLD, NEW = "a" * 40, "b" * 40
NAME = "someone/a-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of a model; ``main`` is the newer."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "models--someone--a-model"
    tiny_sd1(place / "snapshots" / OLD)
    shutil.copytree(place / "snapshots" / OLD, place / "snapshots" / NEW)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(NEW)
    return place


def test_a_branch_becomes_its_commit(cache):
    assert is_on_hub(NAME) and not is_on_hub("pocket") and not is_on_hub(str(cache))
    assert commit_of(locate(NAME)) == NEW
    assert pinned(BaseOptions(model=NAME)).revision == NEW
    (cache / "refs" / "main").write_text(OLD)
    assert pinned(BaseOptions(model=NAME)).revision == OLD
    assert load_base(BaseOptions(model=NAME), weights=False).commit == OLD


def test_a_recorded_commit_goes_before_a_branch_and_behind_a_commit(cache):
    assert pinned(BaseOptions(model=NAME), OLD).revision == OLD
    assert pinned(BaseOptions(model=NAME, revision="main"), OLD).revision == OLD
    assert pinned(BaseOptions(model=NAME, revision=NEW), OLD).revision == NEW
    there = str(cache / "snapshots" / OLD)
    assert pinned(BaseOptions(model=there), NEW).revision is None


def test_a_commit_that_is_not_there_is_named(cache):
    shutil.rmtree(cache / "snapshots" / OLD)
    with pytest.raises(UserError, match=f"revision {OLD}"):
        load_base(pinned(BaseOptions(model=NAME), OLD))


def test_a_checkpoint_tells_its_commit(tmp_path):
    identity = {"base": "1234", "commit": OLD}
    saved = save_state(tmp_path, TrainState(3, {}, {}, identity))
    assert commit_in(saved) == OLD
    # Equal weights under another commit, or none, are the same base.
    refuse_changes(identity, {"base": "1234", "commit": NEW})
    refuse_changes({"base": "1234"}, {"base": "1234", "commit": None})
    with pytest.raises(UserError, match="base was"):
        refuse_changes(identity, {"base": "5678", "commit": OLD})
    os.truncate(saved / "state.json", 10)
    assert commit_in(saved) is None


@pytest.mark.parametrize(
    "name", ["", " ", "a\0b", "x" * 5000, "~nobody-here/model", "a/..", "a--b/c"]
)
def test_names_that_are_no_base(name):
    with pytest.raises(UserError):
        locate(name)
