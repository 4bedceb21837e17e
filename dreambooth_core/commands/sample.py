"""``dreambooth sample PROMPT …``: images with a base and adapters at given weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.bases.locate import is_commit
from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.config.fields import MAX_SEED
from dreambooth_core.config.loading import load
from dreambooth_core.data.decode import encode
from dreambooth_core.devices import choose_device
from dreambooth_core.disk import sha256, write_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.families.host_sampling import HOSTS, SCHEDULES, Like
from dreambooth_core.families.loading import load_base, pinned
from dreambooth_core.families.options import SCHEDULERS, BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.families.tokens import add_token
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.jobs import RunFolder, read_made
from dreambooth_core.jobs.requests import parse_weighted
from dreambooth_core.options import TrainConfig


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    prompts: list[str] = argument(positional=True, metavar="PROMPT", help="what to draw")
    base: str | None = argument(
        None, kind="model", help='a path, a hub id, "pocket" (the default) or "pocket-flow"'
    )
    run: str | None = argument(
        None, kind="run folder", metavar="FOLDER", help="a run: its base and its result"
    )
    adapter: list[str] = argument(
        factory=list,
        kind="adapter",
        repeated=True,
        metavar="FILE[:WEIGHT]",
        help="an adapter; may be given several times",
    )
    embedding: list[str] = argument(
        factory=list,
        repeated=True,
        metavar="FILE",
        help="a learned token, called by its file's name in prompts; may be given several times",
    )
    out: str = argument("samples", help="folder for the images")
    count: int = argument(1, between=(1, 10_000), help="images for each prompt")
    seed: int = argument(0, between=(0, MAX_SEED), help="seed of the first image")
    negative: str = argument("", help="what the images should not show")
    steps: int | None = argument(None, between=(1, 1000), help="denoising steps")
    guidance: float | None = argument(None, between=(0, 100), help="guidance scale")
    scheduler: str = argument("ddim", choices=SCHEDULERS, help="sampler")
    like: str = argument(
        "", choices=("", *HOSTS), help="make the very image that this host makes of a seed"
    )
    schedule: str = argument(
        "",
        choices=("", *dict.fromkeys(name for names in SCHEDULES.values() for name in names)),
        help="with --like: the host's schedule; empty: the one that it begins with",
    )
    cpu_noise: bool = argument(
        False, flags=["--cpu-noise"], help="with --like a1111: its noise is drawn on the CPU"
    )
    width: int | None = argument(None, between=(8, 16384), help="in pixels, a multiple of 8")
    height: int | None = argument(None, between=(8, 16384), help="in pixels, a multiple of 8")
    batch_size: int = argument(4, flags=["--batch-size"], between=(1, 1024), help="images at once")
    device: str = argument("auto", help="auto, cuda, mps, xpu or cpu")


def run(args: Options) -> None:
    """Makes the images."""
    check_numbers(args)
    _like(args)
    options, adapters, tokens = sources(args)
    # Before the base, which takes far longer: what is damaged is said at once.
    rows = {word: read_embedding(place).rows for word, place in tokens.items()}
    weighted = [parse_weighted(text) for text in adapters]
    read = [read_adapter(one.path) for one in weighted]
    parts = load_base(options)
    device = choose_device(args.device)
    for model in parts.networks:
        model.to(device)
    for word, vectors in rows.items():
        add_token(parts, word, vectors)
    stack = AdapterStack(parts.models)
    for number, (one, adapter) in enumerate(zip(weighted, read, strict=True), 1):
        stack.load(f"{number}:{one.path.name}", adapter, one.weight)
    prompts = [prompt for prompt in args.prompts for _ in range(args.count)]
    seeds = [args.seed + i for _ in args.prompts for i in range(args.count)]
    usual = parts.recommended
    settings = SamplingSettings(
        steps=args.steps or int(usual.get("steps", 25)),
        guidance=float(usual.get("guidance", 7.0)) if args.guidance is None else args.guidance,
        scheduler=args.scheduler,
        width=args.width,
        height=args.height,
        negative_prompt=args.negative,
        batch_size=args.batch_size,
        like=_like(args),
    )
    images = generate(parts, prompts, seeds, settings)
    made: list[dict[str, Any]] = []
    for prompt, seed, image in zip(prompts, seeds, images, strict=True):
        path = free_path(Path(args.out), prompt, seed)
        write_bytes(path, encode(image))
        made.append({"file": str(path), "prompt": prompt, "seed": seed, "sha256": sha256(path)})
    told = {"base": options.model, "adapters": adapters, "tokens": tokens, "images": made}
    tell(args, told, (one["file"] for one in made))


def _like(args: Options) -> Like | None:
    """The host whose images are wanted, if any is."""
    if args.like:
        return Like(args.like, args.scheduler, args.schedule, args.cpu_noise)
    for given, flag in ((args.schedule, "--schedule"), (args.cpu_noise, "--cpu-noise")):
        if given:
            raise UserError("this is only for images like a host's", where=flag, do="Add --like.")
    return None


def check_numbers(args: Options) -> None:
    """Raises ``UserError`` for numbers that cannot work."""
    for name in ("width", "height"):
        value = getattr(args, name)
        if value is not None and value % 8:
            raise UserError(
                f"{value} is not a multiple of 8",
                where=f"--{name}",
                do=f"Try {max(8, round(value / 64) * 64)}.",
            )


def sources(args: Options) -> tuple[BaseOptions, list[str], dict[str, str]]:
    """The base, the adapters, and the files of learned tokens by word, as the arguments say.

    A run's base is read as the run read it: of the same commit, with the same autoencoder.
    """
    tokens = {Path(file).stem: file for file in args.embedding}
    options = BaseOptions() if args.base is None else BaseOptions(model=args.base)
    if args.run is None:
        return options, args.adapter, tokens
    folder = RunFolder.open(args.run)
    config = load(TrainConfig, files=[folder.config])
    made = read_made(folder)
    if args.base is None:
        options = pinned(config.base, made.commit if is_commit(made.commit) else None)
    if made.embedding is not None:
        tokens = {made.token: str(made.embedding), **tokens}
    adapters = [] if made.file == made.embedding else [str(made.file)]
    return options, [*adapters, *args.adapter], tokens


def free_path(folder: Path, prompt: str, seed: int) -> Path:
    """A new file name that tells prompt and seed."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "image"
    path = folder / f"{words}-{seed}.png"
    number = 2
    while path.exists():
        path = folder / f"{words}-{seed}-{number}.png"
        number += 1
    return path
