"""``dreambooth inspect FILE``: says what a model file or adapter is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.deferral import importing
from dreambooth_core.errors import UserError, escaped

MOST_FILES = 1000
LONGEST_TEXT = 1 << 20
WORDS = ("vocab.json", "tokenizer.json")
"""Tokenizers' vocabularies, where anything may look like a path."""


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    file: Path = argument(
        kind="any", positional=True, metavar="FILE", help="any model file or folder"
    )
    beside: list[Path] = argument(
        factory=list,
        kind="any",
        hidden=True,
        help="folders in which the other parts of a base may lie, where FILE is a denoiser alone",
    )
    tokenizers: list[Path] = argument(
        factory=list, kind="any", hidden=True, help="folders of tokenizers, likewise"
    )
    metadata: bool = argument(False, help="show all of an adapter's metadata")


def run(args: Options) -> None:
    """Inspects. Raises ``UserError`` for what is no model, or, after the report, a damaged one."""
    with importing():
        from dreambooth_core.families.recognition.detect import identify
        from dreambooth_core.families.registry import FAMILIES, named
        from dreambooth_core.formats.embeddings import read_embedding

    identity = named(identify(args.file))
    if identity.kind == "embedding":
        read_embedding(args.file)
    found = identity.as_dict()
    warning = _gives_away(args.file)
    if identity.kind != "adapter":
        if identity.kind in ("checkpoint", "diffusers"):
            found["trainable"] = identity.family in FAMILIES
        if tokenizer := _tokenizer(args.file):
            found["tokenizer"] = tokenizer
        lines = [f"{args.file}: {identity.label}", *_details(found)]
        if args.beside:
            from dreambooth_core.families.host_files.find import find_parts

            parts = find_parts(args.file, args.beside, args.tokenizers)
            found |= {"parts": vars(parts)} if parts is not None else {}
        if identity.advice:
            lines.append(f"{identity.advice}.")
        _tell(args, found, lines, warning)
        return
    _tell_adapter(args, identity.label, warning)


def _tokenizer(path: Path) -> str:
    """Where ComfyUI keeps the tokenizer of the text encoders in a file; empty for none, or CLIP."""
    from dreambooth_core.families.host_files.read import pieces_in
    from dreambooth_core.families.host_files.texts import text_kind

    if path.is_dir():
        return ""
    try:
        kinds = [text_kind(piece.entries) for piece in pieces_in(path)]
    except UserError:  # what the file is has been said already
        return ""
    return next((kind.tokenizer for kind in kinds if kind is not None and kind.tokenizer), "")


def _tell(args: Options, report: dict[str, Any], lines: list[str], warning: str | None) -> None:
    if warning:
        report["warnings"] = [warning]
        lines.append(f"warning: {warning}")
    tell(args, report, lines)


def _gives_away(path: Path) -> str | None:
    """A warning where metadata or configurations hold paths of somebody's machine."""
    from dreambooth_core.formats.privacy import warning
    from dreambooth_core.formats.storage import read_metadata

    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    texts: list[Any] = []
    for file in files[:MOST_FILES]:
        if file.suffix == ".safetensors":
            texts.append(read_metadata(file))
        elif file.suffix in (".json", ".md") and file.name not in WORDS and file.is_file():
            with file.open(encoding="utf-8", errors="replace") as text:
                texts.append(text.read(LONGEST_TEXT))
    return warning(texts, "it" if path.is_dir() else "its metadata")


def _tell_adapter(args: Options, label: str, warning: str | None) -> None:
    from dreambooth_core.formats.adapters.describe import describe
    from dreambooth_core.formats.adapters.hosts import host_table
    from dreambooth_core.formats.adapters.read import read_adapter

    adapter = read_adapter(args.file, strict=False)
    report = {
        "path": str(args.file),
        "label": label,
        "hosts": host_table(args.file, adapter.family),
        **describe(adapter, args.file),
    }
    _tell(args, report, [f"{args.file}: {label}", *adapter_lines(report)], warning)
    if args.metadata and not args.json:
        for key, value in sorted(report["metadata"].items()):
            print(escaped(f"  {key} = {value}"))
    if report["damaged"] and not args.json:
        raise UserError(
            f"{len(report['damaged'])} modules hold NaN or infinity, the first is "
            f"{report['damaged'][0]}",
            where=args.file,
            do="The adapter is damaged: train or download it again.",
        )


def adapter_lines(report: dict[str, Any]) -> list[str]:
    """An adapter's report for a person."""
    modules = ", ".join(f"{n} in {c}" for c, n in report["modules"].items())
    lines = [
        *(["in the hosts:"] if report["hosts"] else []),
        *(f"  {each['host']:<9}  {each['text']}" for each in report["hosts"]),
        f"family: {report['family'] or 'unknown'}",
        f"method: {report['method']} ({report['layout']} names, {report['dtype']}, "
        f"{report['parameters'] / 1e6:.2f}M numbers)",
        f"modules: {modules}",
        f"ranks: {_counts(report['ranks'])}   alphas: {_counts(report['alphas'])}",
        f"targets: {_counts(report['targets'])}",
    ]
    for key, label in (("trigger_words", "trigger words"), ("base", "base")):
        value = report[key]
        if value:
            lines.append(f"{label}: {', '.join(value) if isinstance(value, list) else value}")
    if report["settings"]:
        lines.append("training: " + ", ".join(f"{k} {v}" for k, v in report["settings"].items()))
    norms = "  ".join(f"{name} {norm:.3g}" for name, norm in report["norms"].items())
    lines.append(f"size of the change per block: {norms}")
    for key, label in (
        ("damaged", "DAMAGED, with NaN or infinity"),
        ("zero", "change nothing"),
        ("unknown_keys", "unknown keys"),
        ("extras", "other tensors"),
    ):
        if report[key]:
            some = ", ".join(report[key][:4])
            lines.append(f"{label}: {len(report[key])} ({some}{', …' * (len(report[key]) > 4)})")
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} x {count}" for key, count in counts.items()) or "none"


def _details(found: dict[str, Any]) -> list[str]:
    known = ("path", "kind", "family", "label", "container")
    return [f"{key}: {value}" for key, value in found.items() if key not in known and value]
