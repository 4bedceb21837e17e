"""A ComfyUI graph in the making, and the page's JSON of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_nodes import NODES

HOST_NODES: dict[str, tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]] = {
    "CheckpointLoaderSimple": (
        [],
        ["ckpt_name"],
        [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")],
    ),
    "CLIPTextEncode": ([("clip", "CLIP")], ["text"], [("CONDITIONING", "CONDITIONING")]),
    "EmptyLatentImage": ([], ["width", "height", "batch_size"], [("LATENT", "LATENT")]),
    "KSampler": (
        [
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        ],
        ["seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
        [("LATENT", "LATENT")],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], [], [("IMAGE", "IMAGE")]),
    "SaveImage": ([("images", "IMAGE")], ["filename_prefix"], []),
    "UNETLoader": ([], ["unet_name", "weight_dtype"], [("MODEL", "MODEL")]),
    "CLIPLoader": ([], ["clip_name", "type", "device"], [("CLIP", "CLIP")]),
    "VAELoader": ([], ["vae_name"], [("VAE", "VAE")]),
    "EmptySD3LatentImage": ([], ["width", "height", "batch_size"], [("LATENT", "LATENT")]),
    "EmptyFlux2LatentImage": ([], ["width", "height", "batch_size"], [("LATENT", "LATENT")]),
    "PreviewImage": ([("images", "IMAGE")], [], []),
    "Note": ([], ["text"], []),
}
"""Sockets, widgets and outputs of the host's nodes that the examples use."""

OURS = {node.id: node for node in NODES}
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
Link = tuple["Placed", int]


COLUMN, WIDTH, GAP = 430, 370, 70
TALK = 110
"""Pixels: between columns, of nodes, between nodes, and of the text that some end with."""
TRAINING = 200
"""Pixels of what a node shows while it trains: its line, the latest image, and the curves."""
COLOURS = {"DreamBooth": ("#223a5e", "#1b2a40"), "Note": ("#4a4326", "#332f1d")}
"""Title and body, by how a kind begins."""


@dataclass
class Placed:
    """A node on the canvas."""

    number: int
    kind: str
    column: int
    inputs: dict[str, Any] = field(default_factory=dict)
    height: int = 0
    title: str = ""
    top: int = 0

    def __getitem__(self, output: int) -> Link:
        return self, output

    @property
    def sockets(self) -> list[tuple[str, str]]:
        if self.kind in HOST_NODES:
            return HOST_NODES[self.kind][0]
        return [
            (i.id, i.type)
            for i in OURS[self.kind].inputs
            if i.type not in WIDGET_TYPES or self._is_linked(i.id)
        ]

    def _is_linked(self, widget: str) -> bool:
        return isinstance(self.inputs.get(widget), tuple)

    @property
    def widgets(self) -> list[tuple[str, Any]]:
        if self.kind in HOST_NODES:
            return [(name, self.inputs[name]) for name in HOST_NODES[self.kind][1]]
        given = self.inputs
        widgets = [i for i in OURS[self.kind].inputs if i.type in WIDGET_TYPES]
        return [
            (i.id, i.default if self._is_linked(i.id) else given.get(i.id, i.default))
            for i in widgets
        ]

    @property
    def texts(self) -> int:
        """How many of the widgets are fields of several lines."""
        if self.kind in HOST_NODES:
            return int(self.kind in ("CLIPTextEncode", "Note"))
        return sum(each.multiline for each in OURS[self.kind].inputs)

    @property
    def outputs(self) -> list[tuple[str, str]]:
        if self.kind in HOST_NODES:
            return HOST_NODES[self.kind][2]
        return [(output.label, output.type) for output in OURS[self.kind].outputs]

    @property
    def tall(self) -> int:
        """Its height as the page draws it, at least."""
        if self.height:
            return self.height
        if self.kind in ("PreviewImage", "SaveImage"):
            return 340
        lines = max(len(self.sockets), len(self.outputs)) + len(self.widgets)
        return 60 + 26 * lines + 64 * self.texts

    @property
    def room(self) -> int:
        """What it takes of its column, its title and the text at its end included."""
        talks = self.kind in OURS and OURS[self.kind].is_output
        trains = self.kind.startswith("DreamBoothTrain")
        return self.tall + GAP + (TALK if talks else 0) + (TRAINING if trains else 0)


class Graph:
    """A workflow in the making: nodes stand below each other in columns."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        """What each column is for: a group with that title stands around it."""
        self.nodes: list[Placed] = []

    def add(self, kind: str, column: int, **inputs: Any) -> Placed:
        above = sum(each.room for each in self.nodes if each.column == column)
        placed = Placed(len(self.nodes) + 1, kind, column, inputs, top=above)
        self.nodes.append(placed)
        return placed

    def page(self) -> dict[str, Any]:
        """The page's JSON."""
        links: list[list[Any]] = []
        shown = [self._node(each, links) for each in self.nodes]
        for link in links:
            outputs = shown[link[1] - 1]["outputs"]
            outputs[link[2]]["links"].append(link[0])
        return {
            "last_node_id": len(shown),
            "last_link_id": len(links),
            "nodes": shown,
            "links": links,
            "groups": [self._group(n, title) for n, title in enumerate(self.columns)],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _group(self, column: int, title: str) -> dict[str, Any]:
        low = max(each.top + each.room for each in self.nodes if each.column == column)
        return {
            "id": column + 1,
            "title": f"{column + 1}  {title}",
            "bounding": [20 + column * COLUMN, 0, WIDTH + 40, 100 + low],
            "color": "#3f789e",
            "font_size": 24,
            "flags": {},
        }

    def _node(self, one: Placed, links: list[list[Any]]) -> dict[str, Any]:
        sockets = []
        for slot, (name, kind) in enumerate(one.sockets):
            link = one.inputs.get(name)
            if link is not None:
                source, output = link
                links.append([len(links) + 1, source.number, output, one.number, slot, kind])
            widget = {"widget": {"name": name}} if kind in WIDGET_TYPES else {}
            sockets.append(
                {"name": name, "type": kind, "link": None if link is None else len(links), **widget}
            )
        coloured = next((c for begin, c in COLOURS.items() if one.kind.startswith(begin)), None)
        return {
            "id": one.number,
            "type": one.kind,
            "pos": [40 + one.column * COLUMN, 90 + one.top],
            "size": [WIDTH, one.tall],
            "flags": {},
            "order": one.number - 1,
            "mode": 0,
            "inputs": sockets,
            "outputs": [
                {"name": label, "type": kind, "links": [], "slot_index": i}
                for i, (label, kind) in enumerate(one.outputs)
            ],
            "properties": {"Node name for S&R": one.kind},
            "widgets_values": [value for _, value in one.widgets],
            **({"color": coloured[0], "bgcolor": coloured[1]} if coloured else {}),
        }
