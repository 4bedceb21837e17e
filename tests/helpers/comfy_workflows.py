"""The page's workflow JSON as the prompt that the page would send, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from comfy_nodes import NODES
from comfy_nodes.description import Node

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

NOT_SENT = ("Note", "MarkdownNote")
OURS = {node.id: node for node in NODES}


def widgets_of(node: Node) -> list[str]:
    """The names of a node's widgets, in order."""
    return [each.id for each in node.inputs if each.type in WIDGETS]


def to_prompt(workflow: dict[str, Any], host_nodes: dict[str, Any]) -> dict[str, Any]:
    """The prompt. ``host_nodes`` is the host's ``/object_info``."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_SENT:
            continue
        inputs = dict(zip(_names(node["type"], host_nodes), node["widgets_values"], strict=True))
        inputs.pop("control_after_generate", None)
        for socket in node["inputs"]:
            if socket["link"] is not None:
                inputs[socket["name"]] = list(links[socket["link"]])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def to_graph(prompt: dict[str, Any], host_nodes: dict[str, Any]) -> dict[str, Any]:
    """A prompt as the page's workflow JSON: the reverse of :func:`to_prompt`."""
    numbers = {name: number for number, name in enumerate(prompt, 1)}
    nodes: dict[str, dict[str, Any]] = {}
    for name, one in prompt.items():
        said = host_nodes[one["class_type"]]
        nodes[name] = {
            "id": numbers[name],
            "type": one["class_type"],
            "pos": [450 * numbers[name], 100],
            "size": [400, 500],
            "flags": {},
            "order": numbers[name],
            "mode": 0,
            "inputs": [],
            "outputs": [
                {"name": label, "type": kind, "links": [], "slot_index": slot}
                for slot, (label, kind) in enumerate(
                    zip(said["output_name"], said["output"], strict=True)
                )
            ],
            "properties": {},
            "widgets_values": [
                one["inputs"].get(each, "") for each in _names(one["class_type"], host_nodes)
            ],
        }
    links: list[list[Any]] = []
    for name, one in prompt.items():
        for key, value in one["inputs"].items():
            if not isinstance(value, list):
                continue
            source, output = nodes[value[0]], value[1]
            slot, number = len(nodes[name]["inputs"]), len(links) + 1
            kind = source["outputs"][output]["type"]
            links.append([number, source["id"], output, numbers[name], slot, kind])
            source["outputs"][output]["links"].append(number)
            nodes[name]["inputs"].append({"name": key, "type": kind, "link": number})
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _names(kind: str, host_nodes: dict[str, Any]) -> list[str]:
    if kind in OURS:
        return widgets_of(OURS[kind])
    found = []
    for name, (type_, *_) in host_nodes[kind]["input"]["required"].items():
        if isinstance(type_, list) or type_ in WIDGETS:
            found.append(name)
            if name in ("seed", "noise_seed"):
                found.append("control_after_generate")
    return found


def problems(workflow: dict[str, Any]) -> list[str]:
    """What does not fit the nodes' descriptions."""
    found = []
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        sent, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        if not sent["type"] == taken["type"] == kind:
            found.append(f"link {number}: {sent['type']} into {taken['type']}")
        if taken["link"] != number or number not in sent["links"]:
            found.append(f"link {number} is not noted at its ends")
    for node in workflow["nodes"]:
        ours = OURS.get(node["type"])
        if ours is not None:
            found += [f"{node['type']} {node['id']}: {what}" for what in _unfit(node, ours)]
    return found


def _unfit(node: dict[str, Any], ours: Node) -> list[str]:
    found = []
    widgets = [each for each in ours.inputs if each.type in WIDGETS]
    linked = {each["name"] for each in node["inputs"] if "widget" in each}
    sockets = [each for each in ours.inputs if each.type not in WIDGETS or each.id in linked]
    if [(s["name"], s["type"]) for s in node["inputs"]] != [(s.id, s.type) for s in sockets]:
        found.append("other sockets")
    found += [
        f"{socket.id} is not linked"
        for socket, shown in zip(sockets, node["inputs"], strict=False)
        if not socket.optional and shown["link"] is None
    ]
    if [(o["name"], o["type"]) for o in node["outputs"]] != [
        (o.label, o.type) for o in ours.outputs
    ]:
        found.append("other outputs")
    if len(node["widgets_values"]) != len(widgets):
        return [*found, "another number of widgets"]
    for widget, value in zip(widgets, node["widgets_values"], strict=True):
        kinds = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool}.get(widget.type, str)
        if not isinstance(value, kinds):
            found.append(f"{widget.id} is {value!r}")
        elif widget.choices and not callable(widget.choices) and value not in widget.choices:
            found.append(f"{widget.id} has no choice {value!r}")
    return found
