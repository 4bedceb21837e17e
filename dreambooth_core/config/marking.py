"""Every wrong value of a form at once, each by its key. Standard library and PyYAML.

:func:`dreambooth_core.config.loading.load` stops at the first error, as a command line should; a
form marks all of them. What depends on several values or on files is found by the engine alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import joined, split_key
from dreambooth_core.config.fields import FieldInfo
from dreambooth_core.config.loading import below, check_value
from dreambooth_core.config.reading import Source, compose, read_node
from dreambooth_core.config.shapes import Shape, present
from dreambooth_core.errors import UserError


def mark(schema: type, flat: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each value: its key → one line. Empty when all are right.

    Args:
        schema: the root dataclass.
        flat: values by dotted keys, as :func:`dreambooth_core.config.describe.flatten` makes them.
    """
    wrong: dict[str, str] = {}
    for key, value in flat.items():
        try:
            _read(schema, key, value)
        except UserError as error:
            error.where = None
            wrong[key] = error.line
    return wrong


def _read(schema: type, key: str, value: Any) -> None:
    source = Source("", Path.cwd(), schema, lines=False)
    shape, info = _find(schema, key, source)
    if value is None:
        if not shape.optional:
            raise UserError(f"{key} needs a value")
        return
    node = compose(json.dumps(value), source)  # JSON is YAML
    if node is None:
        raise UserError(f"{key} needs a value")
    read = read_node(node, shape, key, info, source)
    if info is not None:
        check_value(read, key, info, {})


def _find(schema: type, key: str, source: Source) -> tuple[Shape, FieldInfo | None]:
    shape, info = Shape("section", schema=schema), None
    walked, key = "", present(schema, key)
    try:
        steps = split_key(key)
    except ValueError as error:
        raise UserError(str(error)) from None
    for given in steps:
        step, shape, info = below(shape, info, given, walked, source)
        walked = joined(walked, step)
    return shape, info
