"""``dreambooth estimate CONFIG``: the memory that a run needs, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.options import argument, print_json
from dreambooth_core.commands.train import Configured, read_by_hand
from dreambooth_core.deferral import load_libraries
from dreambooth_core.options.combinations import refuse_settings
from dreambooth_core.options.memory import GIB

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(kw_only=True)
class Options(Configured):
    """What the command takes."""

    limit: float | None = argument(
        None,
        metavar="GIB",
        help="what it must fit into as it is; without it, memory.budget decides",
        between=(0.1, 100_000),
    )
    json: bool = argument(False, help="print the report as JSON")


def run(args: Options) -> int:
    """Prints the report; returns the exit code: 0 it fits, 1 it does not."""
    load_libraries()
    from dreambooth_core.memory.advice import Fit, cheaper, fit, usable
    from dreambooth_core.memory.needs import Planner, device_room

    config, by_hand = read_by_hand(args)
    fitted = Fit(config) if args.limit else fit(config, by_hand)
    config = fitted.config
    planner = Planner(config, device=fitted.device or None)
    refuse_settings(config, device=planner.device, processes=planner.processes)
    needs = planner.needs()
    room = device_room(planner.device)
    total = int(args.limit * GIB) if args.limit else fitted.budget or (room and room.total)
    limit = usable(total) if total else None
    ways = []
    if limit is not None and needs.peak > limit:
        ways = cheaper(planner, limit)
    report: dict[str, Any] = {
        **needs.as_dict(),
        "device": planner.device,
        "total": total,
        **fitted.as_dict(),
        "free": room.free if room and not args.limit else None,
        "fits": None if limit is None else needs.peak <= limit,
        "cheaper": [{"settings": way.words, "peak": way.needs.peak} for way in ways],
    }
    if args.json:
        print_json(report)
    else:
        from dreambooth_core.commands.console import terminal

        show(needs.rows(), report, terminal())
    return 1 if report["fits"] is False else 0


def show(rows: list[tuple[str, int]], report: dict[str, Any], console: Console) -> None:
    """The report for people."""
    from rich.table import Table

    from dreambooth_core.memory.measure import amount

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name, size in rows:
        bold = "bold" if name == "peak" else ""
        table.add_row(name, amount(size), style=bold)
    console.print(table)
    device, total, free = report["device"], report["total"], report["free"]
    if total is None:
        console.print(f"There is no {device} here to compare with; --limit 8 asks for 8 GiB.")
    else:
        here = f"{device}: {amount(total)} in all" + (f", {amount(free)} free" if free else "")
        console.print(here)
    for each in report.get("measures", ()):
        console.print(f"to fit: {each['measure']}: {each['settings']} ({each['cost']})")
    if report["fits"] is False:
        console.print("It does not fit. Cheaper settings, each on top of those before:")
        for way in report["cheaper"]:
            console.print(f"  {way['settings']}  →  {amount(way['peak'])}")
