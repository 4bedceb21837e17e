"""The example workflows, written as graphs here and as the page's JSON into example_workflows/."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_nodes import NODES

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
TEXT = "a photo of sks dog in a meadow"
CONTINUE = (
    "Queue this. Then raise the steps in Settings, say to 600, and queue again: the training goes "
    "on where it ended. The same happens after you cancelled it: what was learned until then is "
    "kept."
)

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
    "PreviewImage": ([("images", "IMAGE")], [], []),
    "Note": ([], ["text"], []),
}
"""Sockets, widgets and outputs of the host's nodes that the examples use."""

OURS = {node.id: node for node in NODES}
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
Link = tuple["Placed", int]


@dataclass
class Placed:
    """A node on the canvas."""

    number: int
    kind: str
    column: float
    row: float
    inputs: dict[str, Any] = field(default_factory=dict)
    height: int = 0
    title: str = ""

    def __getitem__(self, output: int) -> Link:
        return self, output

    @property
    def sockets(self) -> list[tuple[str, str]]:
        if self.kind in HOST_NODES:
            return HOST_NODES[self.kind][0]
        return [(i.id, i.type) for i in OURS[self.kind].inputs if i.type not in WIDGET_TYPES]

    @property
    def widgets(self) -> list[tuple[str, Any]]:
        if self.kind in HOST_NODES:
            return [(name, self.inputs[name]) for name in HOST_NODES[self.kind][1]]
        given = self.inputs
        widgets = [i for i in OURS[self.kind].inputs if i.type in WIDGET_TYPES]
        return [(i.id, given.get(i.id, i.default)) for i in widgets]

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


class Graph:
    """A workflow in the making; columns are 420 pixels wide, rows 10 high."""

    def __init__(self) -> None:
        self.nodes: list[Placed] = []

    def add(self, kind: str, column: float, row: float, **inputs: Any) -> Placed:
        placed = Placed(len(self.nodes) + 1, kind, column, row, inputs)
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
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _node(self, one: Placed, links: list[list[Any]]) -> dict[str, Any]:
        sockets = []
        for slot, (name, kind) in enumerate(one.sockets):
            link = one.inputs.get(name)
            if link is not None:
                source, output = link
                links.append([len(links) + 1, source.number, output, one.number, slot, kind])
            sockets.append(
                {"name": name, "type": kind, "link": None if link is None else len(links)}
            )
        lines = max(len(sockets), len(one.outputs)) + len(one.widgets)
        return {
            "id": one.number,
            "type": one.kind,
            "pos": [40 + round(one.column * 420), 60 + round(one.row * 10)],
            "size": [370, one.height or 60 + 26 * lines + 64 * one.texts],
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
        }


def draw(graph: Graph, column: float, row: float, models: tuple[Link, Link, Link]) -> Placed:
    """Prompt to picture with these models; the node that decodes it."""
    model, clip, vae = models
    wanted = graph.add("CLIPTextEncode", column, row, clip=clip, text=TEXT)
    unwanted = graph.add("CLIPTextEncode", column, row + 22, clip=clip, text="")
    empty = graph.add("EmptyLatentImage", column, row + 44, width=512, height=512, batch_size=2)
    sampled = graph.add(
        "KSampler",
        column + 1,
        row,
        model=model,
        positive=wanted[0],
        negative=unwanted[0],
        latent_image=empty[0],
        seed=1,
        control_after_generate="fixed",
        steps=25,
        cfg=7.0,
        sampler_name="ddim",
        scheduler="normal",
        denoise=1.0,
    )
    decoded = graph.add("VAEDecode", column + 1, row + 32, samples=sampled[0], vae=vae)
    graph.add("SaveImage", column + 2, row, images=decoded[0], filename_prefix="dreambooth")
    return decoded


def subject(graph: Graph, row: float = 0, **prompts: str) -> Placed:
    """The Images node of an example."""
    given = {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog"}
    return graph.add("DreamBoothImages", 0, row, path="my_subject", **{**given, **prompts})


def train_and_generate() -> Graph:
    """Pictures of a subject, a LoRA of it, and new pictures with it."""
    graph = Graph()
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, 34, preset="object-lora-sd1", steps=500)
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        0,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-dog",
        sample_prompts="a photo of sks dog on a beach\na painting of sks dog",
        sample_every=100,
    )
    graph.add("PreviewImage", 1, 66, images=trained[4])
    graph.add("DreamBoothSaveAdapter", 2, 68, adapter=trained[3], name="sks-dog")
    draw(graph, 2, 0, (trained[0], trained[1], trained[2]))
    return graph


def merge_subject_and_style() -> Graph:
    """Two trainings, merged with weights, and a picture with both."""
    graph = Graph()
    dog = subject(graph)
    style = subject(graph, 34, instance_prompt="a drawing in crt style", class_prompt="a drawing")
    style.inputs["path"] = "my_style"
    how = graph.add("DreamBoothSettings", 0, 68, preset="object-lora-sd1", steps=500)
    styled = graph.add("DreamBoothSettings", 0, 106, preset="style-lora-sd1", steps=800)
    trained = [
        graph.add(
            "DreamBoothTrainLora",
            1,
            row,
            checkpoint=CHECKPOINT,
            concept=concept[0],
            settings=settings[0],
            name=name,
        )
        for row, concept, settings, name in (
            (0, dog, how, "sks-dog"),
            (68, style, styled, "crt-style"),
        )
    ]
    merged = graph.add(
        "DreamBoothMergeAdapters",
        2,
        0,
        adapter_1=trained[0][3],
        adapter_2=trained[1][3],
        weight_1=1.0,
        weight_2=0.8,
    )
    base = graph.add("CheckpointLoaderSimple", 2, 50, ckpt_name=CHECKPOINT)
    both = graph.add(
        "DreamBoothApplyAdapter", 2, 66, model=base[0], clip=base[1], adapter=merged[0]
    )
    draw(graph, 3, 0, (both[0], both[1], base[2]))
    return graph


def continue_a_run() -> Graph:
    """A training to be queued twice, the second time with more steps."""
    graph = Graph()
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, 34, preset="object-lora-sd1", steps=300)
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        0,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-dog",
        sample_every=100,
    )
    graph.add("Note", 0, 78, text=CONTINUE)
    graph.add("PreviewImage", 2, 0, images=trained[4])
    graph.add("PreviewImage", 2, 34, images=trained[5])
    return graph


def full_fine_tune() -> Graph:
    """The whole model learns, and prior preservation keeps the class as it was."""
    graph = Graph()
    images = subject(graph)
    prior = graph.add("DreamBoothSettingsPrior", 0, 34, enabled="on", num_images="200")
    settings = graph.add(
        "DreamBoothSettings", 0, 76, preset="object-full-sd1", steps=400, settings=prior[0]
    )
    trained = graph.add(
        "DreamBoothTrainCheckpoint",
        1,
        0,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-dog-model",
    )
    graph.add("PreviewImage", 1, 66, images=trained[5])
    draw(graph, 2, 0, (trained[0], trained[1], trained[2]))
    return graph


def compare_steps() -> Graph:
    """What each saved step of a past training draws."""
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", 0, 0, ckpt_name=CHECKPOINT)
    past = graph.add("DreamBoothRuns", 0, 18, run="sks-dog")
    graph.add("PreviewImage", 0, 46, images=past[2])
    grid = graph.add(
        "DreamBoothCompareSteps",
        1,
        0,
        model=base[0],
        clip=base[1],
        vae=base[2],
        run="sks-dog",
        prompts="a photo of sks dog on a beach\na painting of sks dog\na photo of a dog",
        sampler="ddim",
        scheduler="normal",
    )
    shown = graph.add("SaveImage", 2, 0, images=grid[0], filename_prefix="dreambooth/steps")
    shown.height = 500
    return graph


EXAMPLES = {
    "Train a subject and generate": train_and_generate,
    "Merge subject and style": merge_subject_and_style,
    "Continue a run": continue_a_run,
    "Full fine-tune": full_fine_tune,
    "Compare steps": compare_steps,
}


def write(folder: Path) -> list[Path]:
    """Writes every example; the files."""
    folder.mkdir(exist_ok=True)
    made = []
    for name, make in EXAMPLES.items():
        path = folder / f"{name}.json"
        text = json.dumps(make().page(), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        made.append(path)
    return made
