"""``dreambooth demo``: a tiny model learns a new subject, in minutes, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dreambooth_core.bases.embedded import EMBEDDED
from dreambooth_core.commands.console import terminal
from dreambooth_core.commands.demonstration import FOLDER, Demonstration
from dreambooth_core.commands.options import Reporting, argument, print_json
from dreambooth_core.commands.train import train_here
from dreambooth_core.config.loading import dump, load
from dreambooth_core.data.decode import encode
from dreambooth_core.disk import remove, write_bytes, write_json, write_text
from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.jobs import RunFolder, read_receipt, sanitise
from dreambooth_core.options import TrainConfig

MEASURES = {
    "subject_similarity": "likeness of the subject to its images",
    "class_similarity": "likeness of any star to them (should stay low)",
    "prompt_fidelity": "background that the prompt names is there",
    "class_diversity": "variety of stars (should stay)",
}


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    overrides: list[str] = argument(
        factory=list, positional=True, metavar="key=value", help="changes to the demo"
    )
    base: str = argument(
        EMBEDDED[0],
        choices=EMBEDDED,
        help="which tiny model learns: pocket, a Stable Diffusion 1 (the default), or "
        "pocket-flow, a rectified-flow transformer like Z-Image",
    )
    out: str = argument("runs", kind="run folder", help="folder for runs (default: runs)")
    without_prior: bool = argument(
        False,
        flags=["--without-prior"],
        help="leave prior preservation out, to see what it is good for",
    )


def run(args: Options) -> int:
    """Runs the demo; returns the exit code."""
    console = terminal(stderr=args.json)
    config = demo_config(args)
    folder = fresh_folder(config)
    write_text(folder.config, dump(config, help=True))
    parts = load_base(config.base)
    console.print(
        f"Teaching {args.base}, a tiny {parts.family.label}, one particular star: "
        f"{config.run.steps} steps, a few minutes on one CPU core."
    )
    shows = Demonstration(config, parts)
    before = shows.draw()
    code = train_here(folder)
    if code:
        return code
    result = read_receipt(folder)["result"]
    adapter = folder.path / result["file"]
    after = shows.draw(adapter)
    grid = folder.path / "grid.png"
    write_bytes(grid, encode(shows.grid(before, after), optimize=True))
    losses = [e["loss"] for e in folder.events if e.get("stage") == "train"]
    window = max(1, len(losses) // 10)
    scores = {"before": shows.score(before), "after": shows.score(after)}
    values: dict[str, object] = {
        "steps": result["steps"],
        "train_seconds": result["train_seconds"],
        "loss_first": round(sum(losses[:window]) / window, 5),
        "loss_last": round(sum(losses[-window:]) / window, 5),
        "prior_preservation": config.prior.enabled,
        **{f"{name}_{when}": scores[when][name] for name in MEASURES for when in scores},
        "adapter_file": str(adapter),
        "grid_image": str(grid),
        "loss_image": str(folder.path / "loss.png"),
    }
    write_json(folder.path / "report.json", values)
    if args.json:
        print_json(values)
    else:
        show(values, folder.path, console)
    return 0


def demo_config(args: Options) -> TrainConfig:
    """The demo's configuration with the user's changes."""
    name = "demo" if args.base == EMBEDDED[0] else f"demo-{args.base}"
    changes = [f"run.output={args.out}"]
    if args.without_prior:
        changes.append("prior.enabled=false")
        name += "-without-prior"
    changes.append(f"run.name={name}")
    file = FOLDER / f"{args.base}.yaml"
    return load(TrainConfig, files=[file], overrides=[*changes, *args.overrides])


def fresh_folder(config: TrainConfig) -> RunFolder:
    """The demo's folder, emptied of an earlier demo.

    Raises:
        UserError: the demo is running there, or the folder holds something else.
    """
    folder = RunFolder(Path(config.run.output) / sanitise(config.run.name))
    if folder.path.exists():
        if folder.lock_file.exists() and folder.lock.is_held():
            raise UserError("the demo is already running there", where=folder.path)
        if any(folder.path.iterdir()) and not folder.exists():
            raise UserError(
                "this folder holds something else than an earlier demo",
                where=folder.path,
                do="Name another place: dreambooth demo --out FOLDER.",
            )
        if not remove(folder.path):
            raise UserError("the earlier demo cannot be deleted", where=folder.path)
    return folder.make()


def show(values: dict[str, object], folder: Path, console: Console) -> None:
    """The short table and where things are."""
    table = Table(title=f"{values['steps']} steps in {values['train_seconds']:.0f} s")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, label in MEASURES.items():
        table.add_row(label, f"{values[f'{name}_before']:.2f}", f"{values[f'{name}_after']:.2f}")
    console.print(table)
    console.print(f"Look at {values['grid_image']}", soft_wrap=True)
    console.print(f"adapter: {values['adapter_file']}", soft_wrap=True)
    console.print(f"curve:   {values['loss_image']}", soft_wrap=True)
    console.print(f"numbers: {folder / 'report.json'}", soft_wrap=True)
