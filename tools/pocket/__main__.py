"""``python -m tools.pocket``: makes the embedded base, from nothing, in one command.

Every stage is seeded and keeps what it has done in the work folder, so the same command continues
after a stop. One CPU thread; the minutes of each stage go into ``<work>/minutes.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTextModel
from transformers import logging as transformers_logging

from . import autoencoder, denoiser, export, latents, reader, subject, vision, vocabulary
from .captions import KNOWN
from .training import save_json, save_weights

ASSETS = Path(__file__).resolve().parents[2] / "dreambooth_core" / "assets"
Made = TypeVar("Made")


class Workshop:
    """Where the stages keep their work, and how long each took."""

    def __init__(self, work: Path, assets: Path) -> None:
        self.work, self.assets = work, assets
        self.tokens = assets / "pocket" / "tokenizer"

    def timed(self, stage: str, make: Callable[[], Made]) -> Made:
        """Runs a stage; notes its wall and CPU minutes, summed over interrupted runs."""
        print(f"== {stage}", flush=True)
        wall, cpu = time.monotonic(), time.process_time()
        made = make()
        spent = (time.monotonic() - wall, time.process_time() - cpu)
        run = self.work / stage / "state.json"
        if run.exists():
            facts = json.loads(run.read_text(encoding="utf-8"))
            spent = (facts["wall_seconds"], facts["cpu_seconds"])
        self._note(stage, *spent)
        return made

    def _note(self, stage: str, wall: float, cpu: float) -> None:
        path = self.work / "minutes.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        before = known.get(stage, {"wall": 0.0})
        if wall / 60 > before["wall"]:
            known[stage] = {"wall": round(wall / 60, 1), "cpu": round(cpu / 60, 1)}
        save_json(known, path)

    def make_vocabulary(self) -> None:
        """The tokenizer's files."""
        if not (self.tokens / "vocab.json").exists():
            vocabulary.write(self.tokens, vocabulary.download(self.work))

    def make_autoencoder(self) -> AutoencoderKL:
        """Trained and normalised; kept whole once normalised."""
        kept = self.work / "autoencoder.safetensors"
        model = autoencoder.build()
        if kept.exists():
            model.load_state_dict(load_file(kept))
        else:
            model = autoencoder.train(self.work)
            model.to(memory_format=torch.contiguous_format)
            latents.normalise(model.eval())
            save_weights(model.state_dict(), kept)
        return model.eval().requires_grad_(False)

    def make_reader(self) -> CLIPTextModel:
        """The text tower, locked."""
        words = vocabulary.rare_words(self.tokens, KNOWN)
        return reader.train(self.work, vocabulary.tokenizer(self.tokens), words)

    def make_latents(self, vae: AutoencoderKL) -> denoiser.Material:
        """Caches of both sizes, and the words for their captions."""
        for side in latents.COUNTS:
            latents.encode(vae, self.work, side)
        caches = {side: latents.Latents(self.work, side) for side in latents.COUNTS}
        words = vocabulary.rare_words(self.tokens, KNOWN)
        return denoiser.Material(vocabulary.tokenizer(self.tokens), words, caches)


def make(shop: Workshop) -> None:
    """All stages, then the folder."""
    shop.timed("vocabulary", shop.make_vocabulary)
    text = shop.timed("reader", shop.make_reader)
    vae = shop.timed("autoencoder", shop.make_autoencoder)
    material = shop.timed("latents", lambda: shop.make_latents(vae))
    torch.manual_seed(2)
    unet = denoiser.build_unet()
    for part in denoiser.PARTS:
        shop.timed(part.name, partial(denoiser.train, shop.work, material, text, unet, part))
    shop.timed("decoder", lambda: autoencoder.refine_decoder(shop.work, vae))
    words = material.tokenizer
    scorer = shop.timed("vision", lambda: vision.train(shop.work, words, text, vae))
    pocket = shop.assets / "pocket"
    export.write_pipeline(pocket, unet, text, vae)
    export.write_scorer(pocket, scorer)
    print(f"{pocket}: {export.size_of(pocket) / 1e6:.1f} MB")


def main() -> None:
    """Reads the command line and makes pocket and the demo's pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="kept work")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    subject.write(options.assets / "demo" / "star")
    make(Workshop(options.work, options.assets))


if __name__ == "__main__":
    main()
