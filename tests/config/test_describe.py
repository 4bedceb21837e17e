"""The description that user interfaces draw from."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from dreambooth_core.config.describe import describe, flatten, nest, split_key
from dreambooth_core.config.fields import option, section
from dreambooth_core.config.suggest import advice, nearest


@dataclass
class Leaf:
    where: str = option(label="Where", help="Place.", path="folder")
    size: int = option(8, label="Size", help="How\n  big.", between=(1, 9), unit="pixels")


@dataclass
class Tree:
    """Everything
    there is.

    Not this.
    """

    mode: str = option("a", label="Mode", help="Which.", choices=("a", "b"), advanced=True)
    leaf: Leaf = section(Leaf, label="Leaf", help="The one.")
    leaves: list[Leaf] = option(factory=list, label="Leaves", help="More.")
    names: dict[str, int] = option(factory=dict, label="Names", help="By name.")
    maybe: float | None = option(None, label="Maybe", help="Or not.")


def test_describe_says_all_that_a_control_needs() -> None:
    tree = describe(Tree)
    assert json.loads(json.dumps(tree)) == tree
    assert (tree["name"], tree["help"]) == ("Tree", "Everything there is.")
    mode, leaf, leaves, names, maybe = tree["children"]
    assert mode == {
        "name": "mode",
        "key": "mode",
        "type": "str",
        "optional": False,
        "required": False,
        "default": "a",
        "label": "Mode",
        "help": "Which.",
        "minimum": None,
        "maximum": None,
        "choices": ["a", "b"],
        "open": False,
        "unit": "",
        "advanced": True,
        "path": "",
        "aliases": [],
    }
    where, size = leaf["children"]
    assert (size["key"], size["help"], size["unit"]) == ("leaf.size", "How big.", "pixels")
    assert (size["minimum"], size["maximum"]) == (1, 9)
    assert where["required"] and where["path"] == "folder"
    assert leaves["item"]["children"][0]["key"] == "leaves[].where"
    assert names["item"]["type"] == "int"
    assert maybe["optional"] and maybe["type"] == "float"


def test_flatten_and_nest_are_inverse() -> None:
    tree = Tree(leaf=Leaf(where="x"), leaves=[Leaf("a", 1), Leaf("b", 2)], names={"n": 3})
    flat = flatten(tree)
    assert flat == {
        "mode": "a",
        "leaf.size": 8,
        "leaf.where": "x",
        "leaves[0].size": 1,
        "leaves[0].where": "a",
        "leaves[1].size": 2,
        "leaves[1].where": "b",
        "names.n": 3,
        "maybe": None,
    }
    assert nest(flat) == {
        "mode": "a",
        "leaf": {"size": 8, "where": "x"},
        "leaves": [{"size": 1, "where": "a"}, {"size": 2, "where": "b"}],
        "names": {"n": 3},
        "maybe": None,
    }


def test_keys_are_split_both_ways() -> None:
    assert split_key("a[0].b") == split_key("a.0.b") == ["a", 0, "b"]
    for wrong in ("", "a..b", "a[x]", "a[", ".a"):
        with pytest.raises(ValueError, match="is not a key"):
            split_key(wrong)


def test_types_that_configurations_do_not_use_are_named() -> None:
    @dataclass
    class Wrong:
        x: complex = option(1j, label="x", help="x")

    with pytest.raises(TypeError, match=r"Wrong\.x: .*complex"):
        describe(Wrong)


def test_nearest_ignores_case_dashes_and_underscores() -> None:
    known = ["learning_rate", "steps", "AdamW"]
    assert nearest("Learning-Rate", known) == "learning_rate"
    assert nearest("adamw", known) == "AdamW"
    assert nearest("zzz", known) is None
    assert nearest("lr", known) == "learning_rate"
    assert nearest("l", known) is None
    assert advice("stps", known) == "Did you mean steps?"
    assert advice("zzz", known) == "Known: learning_rate, steps, AdamW."
    assert advice("zzz", []) == ""
