"""Locales and help pages of the nodes, from their descriptions and the tables of translations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from comfy_nodes import NODES
from comfy_nodes.description import PREFIX, Node

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "localizations" / "zh_CN.json"
"""What the WebUI's tab and the nodes both say, the engine's settings above all."""
OWN = Path(__file__).with_name("zh.json")
NOTES = Path(__file__).with_name("notes.json")
"""What help pages say beyond the descriptions, by node and language."""

GROUPS = {
    "en": {"Adapters": "Adapters", "Checkpoints": "Checkpoints", "Runs": "Runs"},
    "zh": {"Adapters": "适配器", "Checkpoints": "检查点", "Runs": "训练记录"},
}
SETTINGS_GROUP = {"en": "Settings", "zh": "设置"}
HEADS = {
    "en": ("Input", "What it is", "Output", "Inputs", "Outputs"),
    "zh": ("输入", "说明", "输出", "输入", "输出"),
}
ENDINGS = (
    " What says so is left to the preset.",
    " none: empty.",
    " One on each line.",
    " One name=value on each line.",
    " In px.",
    " 0: as the preset says.",
)
"""What descriptions append to the engine's own texts."""


_DEFAULT_WORD = "The engine's default:"
_DEFAULT = re.compile(rf"(.+) {_DEFAULT_WORD} (\S+)\.")
"""Also appended: what holds where neither the widget nor a preset says anything."""


class Missing(KeyError):
    """A text without a translation."""


def translator(language: str) -> Any:
    """A function from English to the language. Raises ``Missing`` for an unknown text."""
    if language == "en":
        return lambda text: text
    table: dict[str, str] = json.loads(SHARED.read_text(encoding="utf-8"))
    table |= json.loads(OWN.read_text(encoding="utf-8"))

    def translate(text: str) -> str:
        if text in table:
            return table[text]
        if default := _DEFAULT.fullmatch(text):
            return f"{translate(default[1])}{table[_DEFAULT_WORD]}{default[2]}。"
        for ending in ENDINGS:
            if text.endswith(ending):
                return translate(text.removesuffix(ending)) + table[ending.strip()]
        if text.startswith("Settings: "):
            label = text.removeprefix("Settings: ").removesuffix(" (DreamBooth)")
            return f"{SETTINGS_GROUP[language]}：{translate(label)} (DreamBooth)"
        raise Missing(text)

    return translate


def definitions(language: str) -> dict[str, Any]:
    """``nodeDefs.json``: names and tooltips of every node."""
    say = translator(language)
    return {
        node.id: {
            "display_name": say(node.label),
            "description": say(node.about),
            "inputs": {
                i.id: {"name": say(i.label), "tooltip": say(i.tooltip)} for i in node.inputs
            },
            "outputs": {
                str(n): {"name": say(o.label), "tooltip": say(o.tooltip)}
                for n, o in enumerate(node.outputs)
            },
        }
        for node in NODES
    }


def categories(language: str) -> dict[str, Any]:
    """``main.json``: the menu's words."""
    words = {"DreamBooth": "DreamBooth", **GROUPS[language], "Settings": SETTINGS_GROUP[language]}
    return {"nodeCategories": words}


def help_page(node: Node, language: str) -> str:
    """The help page of a node."""
    say = translator(language)
    name, what, output, inputs, outputs = HEADS[language]
    notes = json.loads(NOTES.read_text(encoding="utf-8"))
    note = notes.get(node.id.removeprefix(PREFIX), notes["Settings*"])[language]
    lines = [f"# {say(node.label)}", "", say(node.about), "", note, ""]
    if node.inputs:
        lines += [f"## {inputs}", "", f"| {name} | {what} |", "| --- | --- |"]
        lines += [f"| {say(i.label)} | {_cell(say(i.tooltip))} |" for i in node.inputs] + [""]
    if node.outputs:
        lines += [f"## {outputs}", "", f"| {output} | {what} |", "| --- | --- |"]
        lines += [f"| {say(o.label)} | {_cell(say(o.tooltip))} |" for o in node.outputs] + [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def files() -> dict[str, str]:
    """Every file by its path in the repository, with its text."""
    made: dict[str, str] = {}
    for language in HEADS:
        for name, value in (
            ("nodeDefs", definitions(language)),
            ("main", categories(language)),
        ):
            text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
            made[f"locales/{language}/{name}.json"] = text
        for node in NODES:
            place = f"web/docs/{node.id}.md" if language == "en" else f"web/docs/{node.id}/zh.md"
            made[place] = help_page(node, language)
    return made
