"""Results: what was learned, as files that hosts and scripts load, and what they say of it.

``save.arrangement`` says where they lie, for those who have code that expects them as other scripts
leave them:

``run``
    One file, or of a fine-tuned model one file and under the same name a diffusers folder.
``diffusers``
    A whole pipeline in the run's folder and the trained networks in ``checkpoint-100/unet`` and
    ``/text_encoder``; of an adapter ``pytorch_lora_weights.safetensors`` in both places.
``peft``
    ``unet/adapter_config.json`` and ``text_encoder/…`` in the same places.
``shivam``
    A whole pipeline with its samples in ``100/``, ``200/`` … in the run's folder, where no other
    run writes. Of a run named ``0``, which is what its command line makes, *beside* that folder:
    its notebook takes every folder there but ``0`` for a number of steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.bases.locate import hub_id
from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import BatchPlan
from dreambooth_core.devices import STORED
from dreambooth_core.disk import (
    copy_file,
    exchanging,
    remove,
    replacing_folder,
    write_bytes,
    write_json,
)
from dreambooth_core.families.components import Components, config_of
from dreambooth_core.families.names import record_of
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.checkpoints.folder_layout import stored_config
from dreambooth_core.formats.checkpoints.networks import component_of
from dreambooth_core.formats.embeddings import write_embedding
from dreambooth_core.formats.folders import PIPELINE
from dreambooth_core.formats.privacy import cleaned
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.jobs import RunFolder
from dreambooth_core.methods.base import Method
from dreambooth_core.trainer.saving import Context

ALONE = "0"
"""The run that has its folder of runs for itself."""
LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for."""
KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
ARGUMENTS = "args.json"
PLAIN = re.compile(r"[^\w.-]+")
"""What a file name had better not have."""
PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""Prediction types as the model spec spells them; it has none for rectified flow."""


class Results:
    """Writes what was learned into a run's folder.

    Args:
        parts: the models.
        method: knows what of them is trained.
        items: the images trained on.
        plan: their batches.
    """

    def __init__(
        self, run: Context, parts: Components, method: Method, items: Items, plan: BatchPlan
    ) -> None:
        self.config, self.folder, self.parts, self.method = run.config, run.folder, parts, method
        self.items, self.plan = items, plan
        self.dtype = STORED[self.config.save.precision]
        self.written: list[str] = []
        """What is a result, relative to the run's folder."""

    def write(self, name: str, step: int) -> Path:
        """Writes the present state of what is trained, after ``step`` steps.

        Returns:
            The file that counts, or a folder where that is the result.

        Raises:
            SaveFailed: it could not be written.
        """
        path = self._write(name, step, self._metadata(name, step))
        self.written.append(self.folder.relative(path))
        return path

    def _write(self, name: str, step: int, metadata: dict[str, str]) -> Path:
        embedding, adapter = self.method.embedding(), self.method.adapter()
        if embedding is not None:
            token = write_embedding(self.token_path(name), embedding, metadata)
            if adapter is None:
                return token
        if adapter is not None:
            adapter.metadata.update(metadata)
        arrangement, target = self.config.save.arrangement, self.folder.path / name
        if arrangement == "shivam":
            return self._write_numbered(step, adapter, metadata)
        if arrangement != "run":
            final = name == self.folder.name
            return self._write_for_scripts(step, adapter, metadata, final=final)
        if adapter is not None:
            ending = "" if self.config.save.layout == "peft" else ".safetensors"
            path = target.with_name(f"{name}{ending}")
            return write_adapter(adapter, path, self.config.save.layout, dtype=self.dtype)
        family, single = self.parts.family, target.with_name(f"{name}.safetensors")
        wanted = "both" if name == self.folder.name else self.config.save.full_steps
        if wanted != "file" or not family.has_host_file:
            family.write_folder(self.parts, target, self.dtype, metadata)
        if wanted == "folder":
            return target
        whole = family.write_file(self.parts, single, self.dtype, metadata)
        return whole or (target if target.exists() else single)

    def token_path(self, name: str) -> Path:
        """Where the learned token of the result ``name`` lies: hosts know it by its file's name."""
        ending = name.removeprefix(self.folder.name)
        return self.folder.path / f"{self._word}{ending}.safetensors"

    def token(self, name: str) -> tuple[str, Path] | None:
        """The learned token of the result ``name``, and the file with its vectors."""
        if self.method.embedding() is None:
            return None
        return self.config.method.placeholder_token, self.token_path(name)

    @property
    def _word(self) -> str:
        word = self.config.method.placeholder_token.lower()
        word = PLAIN.sub("-", word).strip("-.") or "token"
        return f"{word}-token" if word == self.folder.name else word

    def keep_best(self, name: str, result: Path) -> Path:
        """Keeps the result ``name``, that was just written, as ``<run>-best`` too, and a learned
        token as ``<token>-best``; returns the file that counts.

        Raises:
            SaveFailed: it could not be written.
        """
        best, here = f"{self.folder.name}-best", self.folder.path
        if self.method.embedding() is not None:
            token = self.token_path(name)
            kept = _copied(token, self.token_path(best).stem)
            if result == token:
                return kept
        kept = _copied(result, best)
        for ending in ("", ".safetensors"):  # a full result is a folder and a file
            other = here / f"{name}{ending}"
            if other != result and other.exists():
                _copied(other, best)
            elif other != result:
                remove(here / f"{best}{ending}")
        return kept

    def prune(self) -> None:
        """Deletes the results of the oldest steps beyond ``save.keep``; without it keeps all.

        A fine-tuned model is gigabytes a step: whoever limits the checkpoints means these too. The
        final result has no step in its name and stays.
        """
        here, names = self.folder.path, "|".join(map(re.escape, (self.folder.name, self._word)))
        self._prune(rf"(?:{names})-(\d{{6,}})(?:\.\w+)?")
        self.written[:] = [name for name in self.written if (here / name).exists()]

    def _prune(self, stepped: str) -> None:
        """Deletes what has the number of an old step in its name."""
        if self.config.save.keep is None:
            return
        found: dict[int, list[Path]] = {}
        for path in self.folder.path.iterdir():
            if match := re.fullmatch(stepped, path.name):
                found.setdefault(int(match[1]), []).append(path)
        for step in sorted(found)[: -self.config.save.keep]:
            for path in found[step]:
                remove(path)

    def _metadata(self, name: str, step: int) -> dict[str, str]:
        """Metadata for the file of the result ``name``: kohya's ``ss_*`` keys and the SAI model
        spec (1.0.0)."""
        config, parts, items = self.config, self.parts, self.items
        record = record_of(parts.family.names or parts.family.name)
        words = ", ".join(c.instance_prompt for c in config.concepts if c.instance_prompt)
        height, width = items.entries[0].size
        tags: dict[str, Counter[str]] = {}  # parts of captions between commas, by concept
        for entry, text in zip(items.entries, items.captioner.texts, strict=True):
            counts = tags.setdefault(items.concepts[entry.concept].name, Counter())
            counts.update(tag.strip() for tag in text.split(","))
        facts: dict[str, Any] = {
            "ss_output_name": name,
            "ss_sd_model_name": hub_id(parts.source) or Path(parts.source).name,
            "base_model_name_or_path": hub_id(parts.source),
            "ss_sd_model_hash": parts.fingerprint,
            "ss_v2": record.marks.get("ss_v2", "False") if record is not None else "False",
            "ss_steps": step,
            "ss_epoch": self.plan.epoch_of(max(step - 1, 0)) + 1,
            "ss_seed": config.run.seed,
            "ss_learning_rate": config.optim.learning_rate,
            "ss_optimizer": config.optim.optimizer,
            "ss_lr_scheduler": config.optim.lr_scheduler,
            "ss_batch_size_per_device": config.run.batch_size,
            "ss_gradient_accumulation_steps": config.run.gradient_accumulation_steps,
            "ss_mixed_precision": config.run.mixed_precision,
            "ss_clip_skip": parts.clip_skip,
            "ss_resolution": f"({width}, {height})",
            "ss_prior_loss_weight": config.prior.loss_weight if config.prior.enabled else 0,
            "ss_num_train_images": len(self.items.entries),
            "ss_training_finished_at": round(time.time(), 1),
            "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
            "modelspec.title": name,
            "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "modelspec.resolution": f"{width}x{height}",
            "modelspec.prediction_type": PREDICTION.get(parts.prediction_type),
            "modelspec.trigger_phrase": words,
            "modelspec.description": f"Made with dreambooth {__version__}.",
        }
        return {key: str(value) for key, value in facts.items() if value not in (None, "")}

    # --- as other scripts leave them ------------------------------------------------------------
    def _write_for_scripts(
        self, step: int, adapter: Adapter | None, metadata: dict[str, str], *, final: bool
    ) -> Path:
        root, every = self.folder.path, self.config.save.every_steps
        if not final or (every and step % every == 0):
            written = self._write_trained(root / f"checkpoint-{step}", adapter)
            self._prune(r"checkpoint-(\d+)")
            if not final:
                return written
        if adapter is not None:
            return self._write_trained(root, adapter)
        self.parts.family.write_folder(self.parts, root, self.dtype, metadata, extras="none")
        return root

    def _write_trained(self, folder: Path, adapter: Adapter | None) -> Path:
        """What is trained and nothing else: networks in folders of their own, or the adapter."""
        if adapter is None:
            with replacing_folder(folder, [*PIPELINE, *self.parts.family.networks]) as part:
                for name, model in self.method.trained_models.items():
                    component = component_of(name, model)
                    denoises = name == self.parts.family.denoiser
                    stem = "diffusion_pytorch_model" if denoises else "model"
                    tensors = {
                        key: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
                        for key, tensor in component.tensors.items()
                    }
                    write_tensors(part / name / f"{stem}.safetensors", tensors, {"format": "pt"})
                    write_json(part / name / "config.json", stored_config(name, config_of(model)))
            return folder
        if self.config.save.arrangement == "peft":
            return write_adapter(adapter, folder, "peft", dtype=self.dtype)
        with exchanging(folder, [LORA_FILE, KOHYA_FILE]) as part:
            if self.config.save.also_kohya:
                write_adapter(adapter, part / KOHYA_FILE, "kohya", dtype=self.dtype)
            write_adapter(adapter, part / LORA_FILE, "diffusers", dtype=self.dtype)
        return folder / LORA_FILE

    def _write_numbered(self, step: int, adapter: Adapter | None, metadata: dict[str, str]) -> Path:
        folder = self.numbered(step)
        with replacing_folder(folder, [*PIPELINE, LORA_FILE, ARGUMENTS]) as part:
            if adapter is None:
                self.parts.family.write_folder(
                    self.parts, part, self.dtype, metadata, scheduler="ddim", extras="none"
                )
            else:
                write_adapter(adapter, part / LORA_FILE, "diffusers", dtype=self.dtype)
            write_json(part / ARGUMENTS, cleaned(asdict(self.config)))
        return folder

    def numbered(self, step: int) -> Path:
        """The folder of a step in Shivam's arrangement."""
        beside = self.folder.path.with_name(str(step))
        if self.folder.name == ALONE and not RunFolder(beside).exists():
            return beside
        return self.folder.path / str(step)

    def arrange_samples(self, step: int) -> None:
        """Puts a step's validation images beside the numbered pipeline that they show."""
        if self.config.save.arrangement != "shivam" or step == 0:
            return
        images = sorted(self.folder.samples.glob(f"step-{step:06d}-*.png"))
        for index, image in enumerate(images):
            write_bytes(self.numbered(step) / "samples" / f"{index}.png", image.read_bytes())


def _linked(source: str, target: str) -> None:
    """A second name for a file that is only ever replaced, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _copied(result: Path, stem: str) -> Path:
    """Copies a result to ``stem`` beside it, whole or not at all.

    Raises:
        SaveFailed: it could not be written.
    """
    target = result.with_name(f"{stem}{'' if result.is_dir() else result.suffix}")
    if result.is_dir():
        with replacing_folder(target) as part:
            shutil.copytree(result, part, dirs_exist_ok=True, copy_function=_linked)
    else:
        copy_file(result, target, link=True)
    return target
