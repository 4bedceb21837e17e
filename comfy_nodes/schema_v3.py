"""Node classes in the schema of ComfyUI's public API. Importing it needs a host that has one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from .description import Choice, Input, Node, Output, execute

_WIDGETS = {
    "INT": io.Int,
    "FLOAT": io.Float,
    "STRING": io.String,
    "BOOLEAN": io.Boolean,
}


def v3_class(node: Node) -> type[io.ComfyNode]:
    """The class of one node."""

    class Made(io.ComfyNode):
        NODE = node

        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=node.id,
                display_name=node.label,
                category=node.category,
                description=node.about,
                inputs=[_input(each) for each in node.inputs],
                outputs=[_output(each) for each in node.outputs],
                hidden=[io.Hidden.unique_id],
                is_output_node=node.is_output,
            )

        @classmethod
        def execute(cls, **inputs: Any) -> io.NodeOutput:
            result = execute(node, inputs, cls.hidden.unique_id)
            return io.NodeOutput(*result.values, ui={"text": list(result.lines)})

    if node.fingerprint is not None:
        look = node.fingerprint

        def fingerprint_inputs(cls: type, **inputs: Any) -> Any:
            return look(**inputs)

        Made.fingerprint_inputs = classmethod(fingerprint_inputs)
    Made.__name__ = Made.__qualname__ = node.id
    return Made


def extension(nodes: tuple[Node, ...]) -> ComfyExtension:
    """What the host asks the pack for."""

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [v3_class(node) for node in nodes]

    return Extension()


def _input(each: Input) -> io.Input:
    said = each.options() | {"optional": each.optional, "display_name": each.label}
    if each.type == "COMBO":
        return io.Combo.Input(each.id, options=each.names(), **said)
    kind = _WIDGETS.get(each.type)
    if kind is None:
        said.pop("default", None)
        return io.Custom(each.type).Input(each.id, **said)
    return kind.Input(each.id, **said)


def _output(each: Output) -> io.Output:
    kind = io.Custom(each.type)
    if isinstance(each.type, Choice):
        kind.io_type = each.type
    return kind.Output(display_name=each.label, tooltip=each.tooltip)
