"""Writes the table of docs/models.md that says what the proofs of each family found.

::

    python -m pytest --long tests/families --junitxml=proofs.xml
    python -m tools.families proofs.xml …

How much of an adapter each host loads is counted here, from the tables of names; without files of
pytest what the page says of the proofs stays.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from dreambooth_core.disk import write_text
from dreambooth_core.families.base import Family
from dreambooth_core.families.names import HOSTS, names_of
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.formats.adapters.hosts import host_table
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.methods.options import MethodOptions
from tests.helpers.adapters import adapter_for
from tests.helpers.family_adapters import family_adapter

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- Begin of what python -m tools.families writes -->"
END = "<!-- End of what python -m tools.families writes -->"
PROOFS = ("overfit", "call_parity")
HEAD = ("family", "overfitting", "call parity", "tests", "CPU s", *HOSTS)


@dataclass
class Found:
    """What the tests of one family say."""

    figures: dict[str, float] = field(default_factory=dict)
    """The largest of each proof."""
    seconds: float = 0.0
    tests: int = 0
    shared: set[str] = field(default_factory=set)
    """Families whose tests stand in the same file."""

    def cells(self) -> tuple[str, ...]:
        figures = self.figures
        overfit = f"{figures['overfit']:.3f}" if "overfit" in figures else "–"
        parity = f"{figures['call_parity']:.0e}" if "call_parity" in figures else "–"
        parity = "0" if parity == "0e+00" else parity
        others = f" with {', '.join(sorted(self.shared))}" if self.shared else ""
        return overfit, parity, f"{self.tests}{others}", f"{self.seconds:.1f}"


def read(files: Iterable[Path]) -> dict[str, Found]:
    """What pytest wrote, by family. A file of tests is that of the families that it proves."""
    by_module: dict[str, list[ElementTree.Element]] = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            by_module.setdefault(case.get("classname", ""), []).append(case)
    found: dict[str, Found] = {}
    for cases in by_module.values():
        said = [
            (str(each.get("name")), float(each.get("value", 0)))
            for case in cases
            for each in case.iter("property")
        ]
        seconds = sum(value for name, value in said if name == "cpu")
        proved = {name.partition(":")[2] for name, _ in said} - {""}
        for family in proved:
            one = found.setdefault(family, Found())
            one.seconds += seconds
            one.tests += sum(case.find("skipped") is None for case in cases)
            one.shared |= proved - {family}
        for name, value in said:
            proof, _, family = name.partition(":")
            if family:
                figures = found[family].figures
                figures[proof] = max(value, figures.get(proof, 0.0))
    return found


def hosts(family: Family, folder: Path) -> list[str]:
    """What each host loads of a LoRA on the layers that are trained unless others are named, two
    blocks of each kind, written for the hosts."""
    table = host_table(write_adapter(small(family), folder / "a.safetensors", "host"), family.name)
    cells = {}
    for each in table:
        loads = f"{each['loaded']} of {each['total']}"
        cells[each["host"]] = loads if each["runs"] else "–"
    return [cells[host] for host in HOSTS]


def small(family: Family) -> Adapter:
    """A small LoRA on the layers of the denoiser that are trained unless others are named."""
    names = names_of(family.names or family.name)
    whole = adapter_for(family.name) if names is None else family_adapter(names)
    wanted = re.compile(family.targets[MethodOptions().target_modules])
    whole.modules = {
        name: weights
        for name, weights in whole.modules.items()
        if name.startswith(f"{family.denoiser}.") and wanted.search(name)
    }
    return whole


def table(text: str, files: Sequence[Path]) -> str:
    """The table, with the lines around it by which it is found; ``text`` is the page as it is."""
    found, before = read(files), dict(rows(text))
    lines = [BEGIN, "", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    with tempfile.TemporaryDirectory() as folder:
        for name, family in FAMILIES.ours().items():
            measured = found[name].cells() if name in found else before.get(name, ("–",) * 4)
            cells = [f"`{name}`", *measured, *hosts(family, Path(folder))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", END])


def rows(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of the table in a page, the measured cells by family."""
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == len(HEAD) and cells[0].startswith("`"):
            yield cells[0].strip("`"), tuple(cells[1:5])


def page(text: str, files: Sequence[Path] = ()) -> str:
    """The page with the table as it is now in place of the one in it."""
    before, _, rest = text.partition(BEGIN)
    return before + table(text, files) + rest.partition(END)[2]


def main() -> int:
    """Writes the page."""
    files = [Path(name) for name in sys.argv[1:]]
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), files))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
