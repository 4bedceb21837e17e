"""The example workflows, written as graphs here and as the page's JSON into example_workflows/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_nodes.concepts import EXAMPLE

from .canvas import Graph, Link, Placed

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
TEXT = "a photo of sks star in a meadow"
MINE = (
    "It learns the star that comes with the pack. For a subject of yours put 5 to 20 images into a "
    "folder of ComfyUI's input folder, choose it in Images, and write its prompts. Then choose "
    "your model where this says Stable Diffusion 1.5, and a preset that fits both."
)
TRY = (
    "Queue this: pocket, a tiny model that comes with the pack, learns one particular star in a "
    "minute or two, also without a GPU. It is too small for ComfyUI's own loaders, so the training "
    "draws the images itself. The other templates do the same with models of real size."
)
CONTINUE = (
    "Queue this. Then raise the steps in Settings, say to 600, and queue again: the training goes "
    "on where it ended. The same happens after you cancelled it: what was learned until then is "
    "kept."
)
SPLIT = (
    "Choose the files that you have: the diffusion model twice (to train on, to draw with), its "
    "text encoder and its VAE. The adapter goes onto the model that ComfyUI loads."
)
WORD = (
    "It learns a word, sks, and a LoRA together (pivotal tuning), from the star that comes with "
    "the pack. The word must stand in the instance prompt, and prompts for the CLIP from Train "
    "Embedding are read with it. textual_inversion learns the word alone: a file of a few "
    "kilobytes that other graphs call as EMBEDDING says."
)
JUDGE = (
    "Choose a training under Run, in Evaluate and in Runs. Evaluate draws what each of its saved "
    "steps has learned, with the engine's own sampler, and says which is best; Runs takes that "
    "step, and the images below are drawn with it."
)
POCKET_LIKES = """\
data.crop=center
prior.enabled=true
prior.num_class_images=24
prior.batch_size=8
prior.num_inference_steps=20
prior.guidance_scale=3.0
method.target_modules=all
objective.weighting=v_equivalent
optim.lr_scheduler=cosine
optim.lr_warmup_steps=20
run.batch_size=4
validation.num_inference_steps=15
validation.guidance_scale=3.0
"""
"""What a tiny model learns well with; no advice for others."""


def draw(
    graph: Graph,
    column: int,
    models: tuple[Link, Link, Link],
    *,
    latent: str = "EmptyLatentImage",
    size: int = 512,
    **how: Any,
) -> Placed:
    """Prompt to picture with these models, in two columns; the node that decodes it."""
    model, clip, vae = models
    wanted = graph.add("CLIPTextEncode", column, clip=clip, text=TEXT)
    unwanted = graph.add("CLIPTextEncode", column, clip=clip, text="")
    empty = graph.add(latent, column, width=size, height=size, batch_size=2)
    given = {"steps": 25, "cfg": 7.0, "sampler_name": "ddim", "scheduler": "normal"}
    sampled = graph.add(
        "KSampler",
        column + 1,
        model=model,
        positive=wanted[0],
        negative=unwanted[0],
        latent_image=empty[0],
        seed=1,
        control_after_generate="fixed",
        denoise=1.0,
        **{**given, **how},
    )
    decoded = graph.add("VAEDecode", column + 1, samples=sampled[0], vae=vae)
    graph.add("SaveImage", column + 1, images=decoded[0], filename_prefix="dreambooth")
    return decoded


def subject(graph: Graph, **given: Any) -> Placed:
    """The Images node of an example."""
    star = {
        "folder": EXAMPLE,
        "instance_prompt": "a photo of sks star",
        "class_prompt": "a photo of a star",
    }
    return graph.add("DreamBoothImages", 0, **{**star, **given})


def try_it() -> Graph:
    """pocket learns the star: runs anywhere, at once."""
    graph = Graph("What is learned, and how", "Train", "What it made")
    star = "a photo of a sks star with one eye and a smile"
    graph.add("Note", 0, text=TRY)
    images = subject(graph, instance_prompt=star)
    settings = graph.add(
        "DreamBoothSettings",
        0,
        preset="(none)",
        steps=300,
        learning_rate="2e-3",
        random_seed=1,
        overrides=f"data.resolution=128\n{POCKET_LIKES}",
    )
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        checkpoint="pocket",
        concept=images[0],
        settings=settings[0],
        name="star",
        sample_prompts=f"{star} on a night background\n{star} on a grass background",
        sample_every=100,
    )
    graph.add("PreviewImage", 2, images=trained[4])
    graph.add("PreviewImage", 2, images=trained[5])
    return graph


def train_and_generate() -> Graph:
    """Pictures of a subject, a LoRA of it, and new pictures with it."""
    graph = Graph("What is learned, and how", "Train", "Prompt", "Generate")
    graph.add("Note", 0, text=MINE)
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, preset="object-lora-sd1", steps=500)
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-star",
        sample_prompts="a photo of sks star on a beach\na painting of sks star",
        sample_every=100,
    )
    graph.add("PreviewImage", 1, images=trained[4])
    draw(graph, 2, (trained[0], trained[1], trained[2]))
    graph.add("DreamBoothSaveAdapter", 2, adapter=trained[3], name="sks-star")
    return graph


def merge_subject_and_style() -> Graph:
    """Two trainings, merged with weights, and a picture with both."""
    graph = Graph("What is learned, and how", "Train", "Merge", "Prompt", "Generate")
    graph.add("Note", 0, text=MINE)
    dog = subject(graph)
    how = graph.add("DreamBoothSettings", 0, preset="object-lora-sd1", steps=500)
    style = subject(graph, instance_prompt="a drawing in crt style", class_prompt="a drawing")
    styled = graph.add("DreamBoothSettings", 0, preset="style-lora-sd1", steps=800)
    trained = [
        graph.add(
            "DreamBoothTrainLora",
            1,
            checkpoint=CHECKPOINT,
            concept=concept[0],
            settings=settings[0],
            name=name,
        )
        for concept, settings, name in ((dog, how, "sks-star"), (style, styled, "crt-style"))
    ]
    merged = graph.add(
        "DreamBoothMergeAdapters",
        2,
        adapter_1=trained[0][3],
        adapter_2=trained[1][3],
        weight_1=1.0,
        weight_2=0.8,
    )
    base = graph.add("CheckpointLoaderSimple", 2, ckpt_name=CHECKPOINT)
    both = graph.add("DreamBoothApplyAdapter", 2, model=base[0], clip=base[1], adapter=merged[0])
    draw(graph, 3, (both[0], both[1], base[2]))
    return graph


def continue_a_run() -> Graph:
    """A training to be queued twice, the second time with more steps."""
    graph = Graph("What is learned, and how", "Train", "What it made")
    graph.add("Note", 0, text=CONTINUE)
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, preset="object-lora-sd1", steps=300)
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-star",
        sample_every=100,
    )
    graph.add("PreviewImage", 2, images=trained[4])
    graph.add("PreviewImage", 2, images=trained[5])
    return graph


def full_fine_tune() -> Graph:
    """The whole model learns, and prior preservation keeps the class as it was."""
    graph = Graph("What is learned, and how", "Train", "Prompt", "Generate")
    graph.add("Note", 0, text=MINE)
    images = subject(graph)
    prior = graph.add("DreamBoothSettingsPrior", 0, enabled="on", num_images="200")
    settings = graph.add(
        "DreamBoothSettings", 0, preset="object-full-sd1", steps=400, settings=prior[0]
    )
    trained = graph.add(
        "DreamBoothTrainCheckpoint",
        1,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-star-model",
    )
    graph.add("PreviewImage", 1, images=trained[5])
    draw(graph, 2, (trained[0], trained[1], trained[2]))
    return graph


def compare_steps() -> Graph:
    """What each saved step of a past training draws."""
    graph = Graph("A past training", "Compare", "The sheet")
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name=CHECKPOINT)
    past = graph.add("DreamBoothRuns", 0, run="sks-star")
    graph.add("PreviewImage", 0, images=past[2])
    grid = graph.add(
        "DreamBoothCompareSteps",
        1,
        model=base[0],
        clip=base[1],
        vae=base[2],
        run="sks-star",
        prompts="a photo of sks star on a beach\na painting of sks star\na photo of a star",
        sampler="ddim",
        scheduler="normal",
    )
    shown = graph.add("SaveImage", 2, images=grid[0], filename_prefix="dreambooth/steps")
    shown.height = 500
    return graph


def learn_a_word() -> Graph:
    """A word and a LoRA, and pictures by the word."""
    graph = Graph("What is learned, and how", "Train", "Prompt", "Generate")
    graph.add("Note", 0, text=WORD)
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, preset="object-lora-sd1", steps=500)
    trained = graph.add(
        "DreamBoothTrainEmbedding",
        1,
        checkpoint=CHECKPOINT,
        concept=images[0],
        settings=settings[0],
        name="sks-word",
        method="pivotal",
        token="sks",
        initializer_token="star",
        sample_every=100,
    )
    graph.add("PreviewImage", 1, images=trained[5])
    draw(graph, 2, (trained[0], trained[1], trained[2]))
    return graph


def evaluate_and_pick() -> Graph:
    """The best step of a past training, and pictures with it."""
    graph = Graph("A past training", "Judge", "Prompt", "Generate")
    graph.add("Note", 0, text=JUDGE)
    judged = graph.add("DreamBoothEvaluate", 0, run="sks-star", saves=True, images=1)
    sheet = graph.add("PreviewImage", 1, images=judged[0])
    sheet.height = 500
    best = graph.add("DreamBoothRuns", 1, run="sks-star", step=judged[1])
    base = graph.add("CheckpointLoaderSimple", 2, ckpt_name=CHECKPOINT)
    changed = graph.add("DreamBoothApplyAdapter", 2, model=base[0], clip=base[1], adapter=best[0])
    draw(graph, 2, (changed[0], changed[1], base[2]))
    return graph


def split_files(
    name: str, model: str, text: str, vae: str, *, kind: str, latent: str, **how: Any
) -> Graph:
    """A base in several files; the adapter goes onto the model that the host loads.

    Args:
        kind: what the host's loader of text encoders calls this model.
    """
    graph = Graph("What is learned, and how", "Train", "Prompt", "Generate")
    graph.add("Note", 0, text=SPLIT)
    base = graph.add("DreamBoothBaseFiles", 0, diffusion_model=model, text_encoder_1=text, vae=vae)
    images = subject(graph)
    settings = graph.add("DreamBoothSettings", 0, preset="object-lora-flow")
    trained = graph.add(
        "DreamBoothTrainLora",
        1,
        checkpoint="pocket",
        concept=images[0],
        settings=settings[0],
        base=base[0],
        name=name,
        sample_prompts="a photo of sks star on a beach",
    )
    graph.add("PreviewImage", 1, images=trained[4])
    loaded = graph.add("UNETLoader", 2, unet_name=model, weight_dtype="default")
    clip = graph.add("CLIPLoader", 2, clip_name=text, type=kind, device="default")
    decoder = graph.add("VAELoader", 2, vae_name=vae)
    changed = graph.add(
        "DreamBoothApplyAdapter", 2, model=loaded[0], clip=clip[0], adapter=trained[3]
    )
    draw(graph, 2, (changed[0], clip[0], decoder[0]), latent=latent, size=1024, **how)
    return graph


EULER: dict[str, Any] = {"sampler_name": "euler", "scheduler": "simple"}
EXAMPLES: dict[str, Callable[[], Graph]] = {
    "Try it with pocket": try_it,
    "Train a subject and generate": train_and_generate,
    "Merge subject and style": merge_subject_and_style,
    "Continue a run": continue_a_run,
    "Full fine-tune": full_fine_tune,
    "Compare steps": compare_steps,
    "Learn a word": learn_a_word,
    "Evaluate and pick the best step": evaluate_and_pick,
    "Z-Image from its files": lambda: split_files(
        "sks-star-z-image",
        "z_image_turbo_bf16.safetensors",
        "qwen_3_4b.safetensors",
        "ae.safetensors",
        kind="lumina2",
        latent="EmptySD3LatentImage",
        **EULER | {"steps": 8, "cfg": 1.0},
    ),
    "Flux.2 Klein from its files": lambda: split_files(
        "sks-star-klein",
        "flux-2-klein-base-4b.safetensors",
        "qwen_3_4b.safetensors",
        "flux2-vae.safetensors",
        kind="flux2",
        latent="EmptyFlux2LatentImage",
        **EULER | {"steps": 20, "cfg": 4.0},
    ),
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
