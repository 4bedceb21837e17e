"""A step of training is followed through few files: whoever reads it opens no more than these."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from helpers.runs import config_for, folder_for, training_of

import dreambooth_core

HOME = Path(dreambooth_core.__file__).parent
MOST = 15


def test_a_step_passes_through_few_files(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = config_for(base, pictures, tmp_path, run__steps=3)
    training = training_of(config, folder_for(config))
    training.train_step()  # the first one also sets up
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        training.train_step()
    finally:
        sys.setprofile(None)
    ours = {Path(name) for name in seen if Path(name).is_relative_to(HOME)}
    # Torch asks it in each step where its compiler is unread, as in a worker; tests may read it.
    ours.add(HOME / "deferral.py")
    told = sorted(path.relative_to(HOME).as_posix() for path in ours)
    assert {"trainer/train.py", "objective/diffusion.py", "optim/stepper.py"} <= set(told)
    assert len(told) <= MOST, "\n".join(told)
