"""What this machine and this environment can do, and what is wrong with them.

Facts are gathered first (``packages``, ``devices``, ``surroundings``), then judged (``judge``):
a judgement is a pure function, so every one of them is tested without the machine it is about.
"""

from __future__ import annotations

from dreambooth_core.diagnosis.facts import Device, Facts, Kernel, Package, Problem
from dreambooth_core.diagnosis.gather import gather
from dreambooth_core.diagnosis.judge import judge

__all__ = ["Device", "Facts", "Kernel", "Package", "Problem", "gather", "judge"]
