"""The judge of pocket's pictures: a small CNN that names shape, colour, pattern and background.

It is trained on drawn pictures and on what the autoencoder makes of drawn pictures, and never sees
the UNet. ``python -m tools.pocket.classifier`` trains it and reports its accuracy on held-out
pictures of both kinds.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import nn

from .autoencoder import to_tensor
from .painting import paint
from .training import Run, save_json, save_weights
from .vision import decoded
from .world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Scene, random_scene

HEADS = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "background": BACKGROUNDS,
}
STEPS = 900
BATCH = 48
SIDE = 64
HERE = Path(__file__).parent


class Classifier(nn.Module):
    """Pictures [n, 3, 64, 64] in -1..1 to logits per head."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in (24, 48, 96, 128):
            layers += [nn.Conv2d(before, width, 3, stride=1 if before == 3 else 2, padding=1)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, stride=2 if before == 3 else 1, padding=1)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(before * 4, len(names)) for name, names in HEADS.items()}
        )

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [n, names] for each head."""
        features = self.body(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def truth(scene: Scene) -> dict[str, int]:
    """The right class for each head; -100 (ignored) for a colour without a name."""
    thing = scene.thing
    names = {"shape": thing.shape, "pattern": thing.pattern, "background": scene.background}
    answers = {head: HEADS[head].index(name) for head, name in names.items()}
    clear = thing.colour is not None and thing.second is None
    answers["colour"] = HEADS["colour"].index(thing.colour) if clear else -100
    return answers


def shrink_tensor(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [n, 3, h, w] to the classifier's 64 px by averaging."""
    return F.interpolate(pictures, size=(SIDE, SIDE), mode="area")


def draw(rng: random.Random, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures [count, 3, 128, 128] and the truth about them."""
    scenes = [random_scene(rng, featured=0.15) for _ in range(count)]
    facts = [truth(scene) for scene in scenes]
    labels = {head: torch.tensor([fact[head] for fact in facts]) for head in HEADS}
    return to_tensor([paint(scene) for scene in scenes]), labels


def blur(pictures: torch.Tensor, model: AutoencoderKL, some: torch.Tensor) -> torch.Tensor:
    """At 64 px, those numbered in ``some`` through the autoencoder (half of them at 128 px)."""
    small = shrink_tensor(pictures)
    middle = len(some) // 2
    small[some[:middle]] = decoded(model, small[some[:middle]])
    small[some[middle:]] = shrink_tensor(decoded(model, pictures[some[middle:]]))
    return small


def train(folder: Path, autoencoder: AutoencoderKL) -> Classifier:
    """Trains (or resumes) the classifier."""
    torch.manual_seed(5)
    model = Classifier()
    run = Run("classifier", model, folder, STEPS, 3e-3, decay=0.99, weight_decay=0.05)
    for step in run.steps():
        rng, generator = run.random(step)
        pictures, labels = draw(rng, BATCH)
        pictures = blur(pictures, autoencoder, torch.randperm(BATCH, generator=generator)[:12])
        logits = model(pictures)
        loss = torch.stack([F.cross_entropy(logits[h], labels[h]) for h in HEADS]).sum()
        run.optimise(step, loss)
    run.use_average()
    return model.eval()


@torch.no_grad()
def accuracy(
    model: Classifier, autoencoder: AutoencoderKL | None, count: int = 1000
) -> dict[str, float]:
    """Share of right answers on held-out pictures, decoded ones if an autoencoder is given."""
    rng = random.Random("held-out")
    right = dict.fromkeys(HEADS, 0)
    asked = dict.fromkeys(HEADS, 0)
    for _ in range(count // 50):
        pictures, labels = draw(rng, 50)
        if autoencoder is not None:
            pictures = decoded(autoencoder, pictures)
        logits = model(shrink_tensor(pictures))
        for head, answers in labels.items():
            known = answers >= 0
            right[head] += int((logits[head].argmax(1)[known] == answers[known]).sum())
            asked[head] += int(known.sum())
    return {head: round(right[head] / asked[head], 4) for head in HEADS}


def load(path: Path = HERE / "classifier.safetensors") -> Classifier:
    """The trained classifier that is kept beside this file."""
    model = Classifier()
    model.load_state_dict({k: _whole(v) for k, v in load_file(path).items()})
    return model.eval()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def main() -> None:
    """Trains the classifier for the autoencoder of a pocket folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    default = HERE.parents[1] / "dreambooth_core" / "assets" / "pocket"
    parser.add_argument("--pocket", type=Path, default=default)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    autoencoder = AutoencoderKL.from_pretrained(options.pocket / "vae", torch_dtype=torch.float32)
    model = train(options.work, autoencoder.eval())
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_weights(weights, HERE / "classifier.safetensors")
    facts = {
        "drawn": accuracy(load(), None),
        "decoded by the autoencoder": accuracy(load(), autoencoder),
    }
    save_json(facts, HERE / "classifier.json")
    print(facts)


if __name__ == "__main__":
    main()
