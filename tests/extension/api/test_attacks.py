"""Every route against every payload, under both hosts' fastapi and pydantic.

Each host gets another eighth of the attacks. All of them: ``ATTACKS=all python -m pytest -s
tests/extension/api/test_attacks.py``, which prints the counts.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.engine_environment import this_python
from helpers.gradio import HOSTS, python_of

ROOT = Path(__file__).parents[3]
CLASSES = {
    *("absent", "bad bodies", "flags", "foreign origin", "links", "long", "names", "network paths"),
    *("no token", "null", "rebinding", "there", "too large", "traversal", "types", "unicode"),
    *("written elsewhere", "wrong content type", "wrong token"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_no_attack_gets_through(host: str, tmp_path: Path) -> None:
    share = [] if os.environ.get("ATTACKS") == "all" else ["8", str(HOSTS.index(host))]
    script = Path(__file__).with_name("attacks.py")
    done = subprocess.run(
        [str(python_of(host)), str(script), str(ROOT), str(tmp_path / "host"), *share],
        env=os.environ | {"DREAMBOOTH_ENV": str(this_python(tmp_path / "engine"))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "ATTACKED" in done.stdout, done.stderr[-3000:]
    told = json.loads(done.stdout.rpartition("ATTACKED")[2])
    classes = told["classes"]
    for kind, score in classes.items():
        print(f"{host} {kind}: {score['tried']} tried, {len(score['through'])} got through")
    assert set(classes) == CLASSES
    assert told["routes"] >= 44 and sum(score["tried"] for score in classes.values()) > 1200
    assert [words for score in classes.values() for words in score["through"]] == []
