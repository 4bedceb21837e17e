"""Node classes for hosts that know the older schema alone."""

from __future__ import annotations

from typing import Any, ClassVar

from .description import Input, Node, execute


def v1_class(node: Node) -> type:
    """The class of one node."""

    class Made:
        DESCRIPTION = node.about
        CATEGORY = node.category
        FUNCTION = "execute"
        OUTPUT_NODE = node.is_output
        RETURN_TYPES = tuple(output.type for output in node.outputs)
        RETURN_NAMES = tuple(output.label for output in node.outputs)
        OUTPUT_TOOLTIPS = tuple(output.tooltip for output in node.outputs)
        NODE: ClassVar[Node] = node

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 (the host's name)
            types: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
            for each in node.inputs:
                types["optional" if each.optional else "required"][each.id] = _input(each)
            types["hidden"] = {"unique_id": "UNIQUE_ID"}
            return types

        def execute(self, unique_id: str | None = None, **inputs: Any) -> dict[str, Any]:
            result = execute(node, inputs, unique_id)
            return {"ui": {"text": list(result.lines)}, "result": result.values}

    if node.fingerprint is not None:
        look = node.fingerprint

        def is_changed(cls: type, **inputs: Any) -> Any:
            inputs.pop("unique_id", None)
            return look(**inputs)

        Made.IS_CHANGED = classmethod(is_changed)  # type: ignore[attr-defined]
    Made.__name__ = Made.__qualname__ = node.id
    return Made


def _input(each: Input) -> tuple[Any, dict[str, Any]]:
    options = each.options() | {"display_name": each.label}
    if each.type == "COMBO":
        return each.names(), options
    return each.type, options
