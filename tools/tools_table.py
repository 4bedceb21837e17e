"""Writes the tables of docs/merging.md that say which tool takes what.

``python -m tools.tools_table``. Each cell is tried: the command runs on tiny files of each family.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dreambooth_core.commands.main import main as dreambooth
from dreambooth_core.disk import write_text
from dreambooth_core.families.base import Family
from dreambooth_core.families.names import names_of
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import adapter_for
from tests.helpers.family_adapters import family_adapter, native_file
from tests.helpers.host_files import as_fp8, write_gguf, write_split
from tests.helpers.reduced_models import reduced_parts

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where pytest finds the helpers, too

from helpers import flow_bases

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "merging.md"
BEGIN = "<!-- Begin of what python -m tools.tools_table writes -->"
END = "<!-- End of what python -m tools.tools_table writes -->"
KINDS = {"LoRA": "lora", "DoRA": "dora", "LoHa": "loha", "LoKr": "lokr", "OFT": "oft"}
OF_ADAPTERS = ("inspect", "merge", "resize", "convert")
OF_BASES = ("inspect", "bake", "extract", "convert")
LAYOUTS = ("kohya", "comfyui", "diffusers", "peft")
YES, NO, BASE = "yes", "no", "with `--base`"
PREFIX = "model.diffusion_model."
WIDTH = 96
"""Of the layers: GGUF's blocks are 32, and Krea 2 has a fourth of it in keys."""
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def takes(*command: str | Path) -> bool:
    """Whether the command does its work; what it says is nobody's."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        done = dreambooth([str(each) for each in command])
    return done == 0


# -- adapters -------------------------------------------------------------------------------------


def adapter_of(family: Family, method: str = "lora") -> Adapter:
    """A small adapter of a method on layers of the denoiser."""
    names = names_of(family.names or family.name)
    if names is None:
        whole = adapter_for(family.name, method, every=9)
        kept = {n: w for n, w in whole.modules.items() if n.startswith("unet.")}
        return Adapter(kept, {}, family.name)
    return family_adapter(names, method, width=WIDTH, only=LAYERS)


def base_of(family: Family, folder: Path) -> Path:
    """A base of a family in one file, with which its adapters go together."""
    path = folder / "base.safetensors"
    names = names_of(family.names or family.name)
    if names is None:
        write_single_file(reduced_parts(family.name), path)
        return path
    return native_file(names, path, width=WIDTH)


def adapters(families: Iterable[Family], folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """By command and kind of adapter: the answer for each family."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for family in families:
        base = base_of(family, folder)
        for label, method in KINDS.items():
            file = folder / "a.safetensors"
            write_adapter(adapter_of(family, method), file, "host")
            for command in OF_ADAPTERS:
                answer = _answer(command, file, base, folder / "out.safetensors")
                found.setdefault((command, label), {})[family.label] = answer
    return found


def _answer(command: str, file: Path, base: Path, out: Path) -> str:
    if command == "convert":
        peft = out.with_suffix("")
        targets = {layout: peft if layout == "peft" else out for layout in LAYOUTS}
        done = [k for k, to in targets.items() if takes(command, file, to, "--layout", k)]
        return ", ".join(f"`{layout}`" for layout in done) or NO
    asked: list[str | Path] = {
        "inspect": [file],
        "merge": [f"{file}:0.5", f"{file}:0.25", "--out", out],
        "resize": [file, out, "--rank", "2"],
    }[command]
    if takes(command, *asked):
        return YES
    return BASE if command != "inspect" and takes(command, *asked, "--base", base) else NO


# -- bases ----------------------------------------------------------------------------------------

Write = Callable[[Family, Path], Path]


def _folder(family: Family, folder: Path) -> Path:
    target = folder / "in"
    shutil.rmtree(target, ignore_errors=True)
    if names_of(family.names or family.name) is None:
        write_folder(reduced_parts(family.name), target)
        return target
    from dreambooth_core.formats.adapters.denoisers import read_denoiser

    tensors = read_denoiser(base_of(family, folder)).tensors
    file = target / "transformer" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(parents=True)
    storage.write_tensors(file, {key: tensor.clone() for key, tensor in tensors.items()})
    kind = family.classes[family.denoiser].rpartition(".")[2]
    write_text(file.with_name("config.json"), json.dumps({"_class_name": kind}))
    index = {"_class_name": family.pipelines[0], "transformer": ["diffusers", kind]}
    write_text(target / "model_index.json", json.dumps(index))
    return target


def _stored(family: Family, folder: Path, scaled: str | None) -> Path:
    path, whole = folder / "fp8.safetensors", base_of(family, folder)
    tensors = storage.read_tensors(whole)
    unet = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    storage.write_tensors(path, tensors | as_fp8(unet, scaled), storage.read_metadata(whole))
    return path


def _gguf(family: Family, folder: Path) -> Path:
    path = folder / "model.gguf"
    tensors = storage.read_tensors(base_of(family, folder))
    alone = {k.removeprefix(PREFIX): t for k, t in tensors.items() if k.startswith(PREFIX)}
    small = [k for k, t in alone.items() if t.dim() == 2 and t.shape[1] % 32 == 0]
    write_gguf(path, alone, small)
    return path


FORMS: Mapping[str, Write] = {
    "one file": base_of,
    "folder": _folder,
    "fp8": partial(_stored, scaled=None),
    "fp8 with scales": partial(_stored, scaled="scale_weight"),
    "GGUF": _gguf,
}


def bases(families: Iterable[Family], folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """By command and form of the base: the answer for each family."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for family in families:
        file = write_adapter(adapter_of(family), folder / "a.safetensors", "host")
        tuned, out = folder / "tuned.safetensors", folder / "out.safetensors"
        takes("bake", base_of(family, folder), file, "--out", tuned)
        whole = _whole(family, folder / "whole")
        for form, write in FORMS.items():
            base = write(family, folder)
            answers = {
                "inspect": takes("inspect", base),
                "bake": takes("bake", base, file, "--out", out),
                "extract": takes("extract", base, tuned, out, "--rank", "2"),
                "convert": takes("convert", whole[form] if whole else base, out),
            }
            for command, done in answers.items():
                found.setdefault((command, form), {})[family.label] = YES if done else NO
    return found


def _whole(family: Family, folder: Path) -> dict[str, Path]:
    """Whole denoisers in every form, which converting asks for; nothing for Stable Diffusion."""
    name = {"flux2": "flux2_klein"}.get(family.name, family.name)
    if name not in flow_bases.WRITERS:
        return {}
    shutil.rmtree(folder, ignore_errors=True)
    source = flow_bases.WRITERS[name](folder / "source")
    if family.files is None:
        return dict.fromkeys(FORMS, folder / "none.safetensors") | {"folder": source}
    split = write_split(family, source, folder / "split")
    tensors = split.tensors[family.denoiser]
    forms = {"one file": split.denoiser, "folder": source}
    for form, scaled in {"fp8": None, "fp8 with scales": "scale_weight"}.items():
        forms[form] = folder / f"{form}.safetensors"
        storage.write_tensors(forms[form], as_fp8(tensors, scaled))
    forms["GGUF"] = folder / "model.gguf"
    small = [k for k, t in tensors.items() if t.dim() == 2 and t.shape[1] % 32 == 0]
    write_gguf(forms["GGUF"], tensors, small)
    return forms


# -- the page -------------------------------------------------------------------------------------


def cell(answers: Mapping[str, str]) -> str:
    """What most families answer, and who else."""
    kinds = list(answers.values())
    most = max(dict.fromkeys(kinds), key=kinds.count)
    others: dict[str, list[str]] = {}
    for family, answer in answers.items():
        if answer != most:
            others.setdefault(answer, []).append(family)
    apart = [f"{answer}: {', '.join(names)}" for answer, names in others.items()]
    return "; ".join([most, *apart])


def lines(
    head: str,
    commands: Sequence[str],
    columns: Iterable[str],
    found: Mapping[tuple[str, str], Mapping[str, str]],
) -> list[str]:
    """One table."""
    columns = list(columns)
    table = [f"| {head} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for command in commands:
        cells = [cell(found[command, column]) for column in columns]
        table.append(f"| `{command}` | {' | '.join(cells)} |")
    return table


def table(families: Sequence[Family]) -> str:
    """Both tables, with the lines around them by which they are found."""
    with tempfile.TemporaryDirectory() as folder:
        of_adapters = adapters(families, Path(folder))
        of_bases = bases(families, Path(folder))
    return "\n".join(
        [
            *(BEGIN, ""),
            *lines("adapter", OF_ADAPTERS, KINDS, of_adapters),
            "",
            *lines("base", OF_BASES, FORMS, of_bases),
            *("", END),
        ]
    )


def main() -> int:
    """Writes the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    made = table(list(FAMILIES.ours().values()))
    write_text(PAGE, before + made + rest.partition(END)[2])
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
