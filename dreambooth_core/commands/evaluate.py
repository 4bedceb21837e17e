"""``dreambooth evaluate RUN …``: how well a subject was learned, in numbers and images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.options import Reporting, argument, print_json
from dreambooth_core.config.fields import MAX_SEED
from dreambooth_core.errors import UserError, escaped

if TYPE_CHECKING:
    from dreambooth_core.commands.judging import Contest

PAGE = "evaluation.html"
"""In the run's folder, unless another is named."""
KINDS = ("thing", "living", "style")

EXAMPLES = """\
measures:
  subject, clip_i   likeness of generated images to real ones, by DINO and by CLIP
  style             for --kind style: likeness of other contents to the real images, by CLIP
  clip_t            how far images show what their prompts say, by CLIP
  preservation      likeness of the class prompt's images to the subject: should not rise
  diversity         how unlike each other the class prompt's images are: should not fall
each with the interval that holds 95% of what drawing the images anew gives.

examples:
  dreambooth evaluate runs/dog --kind living
  dreambooth evaluate runs/dog --saves              every saved step beside each other
  dreambooth evaluate runs/dog runs/dog-2 --out comparison --download
"""


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    runs: list[str] = argument(
        kind="run folder", positional=True, metavar="RUN", help="folders of runs with a result"
    )
    kind: str = argument(
        "thing",
        choices=KINDS,
        help="which 25 prompts: of things, of people and animals, or other contents for a style",
    )
    prompts: Path | None = argument(
        None,
        kind="config file",
        metavar="FILE",
        help='other prompts: a JSON list of texts with "{}" for the subject',
    )
    images: int = argument(4, between=(1, 64), help="images for each prompt")
    saves: bool = argument(False, help="judge every saved result, not the last one alone")
    seed: int = argument(0, between=(0, MAX_SEED), help="of the first image")
    steps: int | None = argument(None, between=(1, 1000), help="denoising steps")
    guidance: float | None = argument(None, between=(0, 100), help="guidance scale")
    batch_size: int = argument(4, flags=["--batch-size"], between=(1, 1024), help="images at once")
    clip: str = argument("", metavar="NAME", help="another CLIP: a hub id or a folder")
    dino: str = argument("", metavar="NAME", help="another DINO: a hub id or a folder")
    download: bool = argument(
        False, help="let encoders that are not on this machine be fetched (CLIP 605 MB, DINO 88 MB)"
    )
    out: Path | None = argument(
        None,
        kind="run folder",
        help="folder for evaluation.html, .png and .json (default: the first run's)",
    )
    device: str = argument("auto", help="auto, cuda, mps, xpu or cpu")


def run(args: Options) -> None:
    """Makes the images and judges them."""
    from dreambooth_core.deferral import load_libraries

    load_libraries()
    from dreambooth_core.commands.judging import evaluate
    from dreambooth_core.data.decode import encode
    from dreambooth_core.disk import write_bytes, write_json, write_text

    if not args.runs:
        raise UserError("no run is named", do="dreambooth evaluate runs/NAME")
    folder = args.out or Path(args.runs[0])
    contest = evaluate(args, folder, tell=_tell)
    files = {kind: str(folder / f"evaluation.{kind}") for kind in ("html", "json", "png")}
    report = {**contest.as_dict(), "files": files}
    # A run may come from somebody else, with links in it.
    write_bytes(folder / "evaluation.png", encode(contest.grid()), follow=False)
    write_text(folder / PAGE, contest.page(), follow=False)
    write_json(folder / "evaluation.json", report, follow=False)
    if args.json:
        print_json(report)
    else:
        show(contest, files)


def show(contest: Contest, files: dict[str, str]) -> None:
    """The table for people, and where the page is."""
    from rich.table import Table

    from dreambooth_core.commands.console import terminal
    from dreambooth_core.evaluation.page import WORDS

    console = terminal()
    for note in contest.notes:
        console.print(escaped(note), soft_wrap=True, markup=False)
    table = Table()
    table.add_column("")
    for model in contest.models:
        table.add_column(escaped(model.label) + (" (best)" if model.best else ""), justify="right")
    for name, (word, _) in WORDS.items():
        cells = [_cell(model, name) for model in contest.models]
        if any(cells):
            table.add_row(word, *cells)
    console.print(table)
    console.print(f"Look at {files['html']}", soft_wrap=True, markup=False)


def _cell(model: Any, name: str) -> str:
    if name == "held_out_loss":
        return "" if model.held_out_loss is None else f"{model.held_out_loss:.4f}"
    found = model.measures.get(name)
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _tell(what: str) -> None:
    sys.stderr.write(f"{escaped(what)}\n")
