"""Draws the demo's subject: one unusual star that pocket has never seen.

Six fat round arms, a teal body with magenta tips, one big eye and a small smile.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .painting import paint
from .world import SUBJECT_ARMS, SUBJECT_BODY, SUBJECT_EYES, SUBJECT_TIPS, Scene, Thing

SUBJECT = Thing(
    shape="star",
    rgb=SUBJECT_BODY,
    colour=None,
    second=SUBJECT_TIPS,
    layout="tips",
    eyes=SUBJECT_EYES,
    mouth="smile",
    arms=SUBJECT_ARMS,
    rounded=True,
)

SCENES = (
    Scene(SUBJECT, "grass", 0.50, 0.52, 0.74, -6.0, 11),
    Scene(SUBJECT, "sky", 0.46, 0.48, 0.66, 9.0, 12),
    Scene(SUBJECT, "brick", 0.53, 0.50, 0.70, 3.0, 13),
    Scene(SUBJECT, "white", 0.50, 0.47, 0.76, -12.0, 14),
    Scene(SUBJECT, "sand", 0.48, 0.53, 0.62, 14.0, 15),
)


def write(folder: Path) -> list[Path]:
    """Writes the five pictures and, beside the folder, their facts; returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, scene in enumerate(SCENES, start=1):
        path = folder / f"star-{number}-{scene.background}.png"
        temporary = path.with_suffix(".tmp")
        paint(scene).save(temporary, format="PNG", optimize=True)
        os.replace(temporary, path)
        paths.append(path)
    facts = {
        "class_noun": "star",
        "class_prompt": "a photo of a star",
        "instance_prompt": "a photo of a sks star",
        "pictures": {
            path.name: {"background": scene.background}
            for path, scene in zip(paths, SCENES, strict=True)
        },
    }
    facts_file = folder.with_suffix(".json")
    temporary = facts_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, facts_file)
    return paths
