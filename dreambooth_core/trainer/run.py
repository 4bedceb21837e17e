"""A run from its folder to its results: what the worker calls."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.config.loading import load
from dreambooth_core.deferral import load_libraries
from dreambooth_core.errors import SaveFailed
from dreambooth_core.evaluation.curves import loss_picture
from dreambooth_core.formats.storage import write_bytes
from dreambooth_core.jobs import Event, RunFolder, write_receipt
from dreambooth_core.quiet import quieten
from dreambooth_core.trainer import loop, publish
from dreambooth_core.trainer.advice import is_out_of_memory, out_of_memory
from dreambooth_core.trainer.build import Builder
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.decide import Decision, decide
from dreambooth_core.trainer.precision import STORED
from dreambooth_core.trainer.processes import Processes, join
from dreambooth_core.trainer.proof import answer, as_stored, prove, sums_of
from dreambooth_core.trainer.report import Reporter
from dreambooth_core.trainer.results import embedding_path
from dreambooth_core.trainer.session import Session
from dreambooth_core.trainer.state import choose, load_state, refuse_changes, saved_steps
from dreambooth_core.trainer.watch import configs_in, estimate_of

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "bitsandbytes")


def run(
    folder: RunFolder,
    *,
    on_event: Callable[[Event], None] | None = None,
    decision: Decision | None = None,
) -> None:
    """Trains what the folder's ``config.yaml`` says, and writes everything into the folder.

    Args:
        folder: the run's.
        on_event: called with each event.
        decision: about that configuration, where it was made already.

    Raises:
        UserError: something in the configuration or the pictures cannot work.
        TrainingFailed: training went wrong; what was saved stays.
        Stopped: the user asked for it; what was saved stays.
    """
    quieten()
    load_libraries()
    config = load(TrainConfig, files=[folder.config])
    processes = join(config.run.device)
    reporter = None
    try:
        if decision is None or decision.config != config:
            decision = decide(config, processes=processes)
        reporter = Reporter(
            folder,
            tensorboard=config.log.tensorboard,
            board_folder=config.log.folder,
            wandb_project=config.log.project if config.log.wandb else None,
            on_event=on_event,
            enabled=processes.is_main,
        )
        _run(decision, folder, processes, reporter)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        saved = max(saved_steps(folder.checkpoints), default=None)
        raise out_of_memory(config, processes.device, saved) from error
    finally:
        if reporter is not None:
            reporter.close()
        processes.close()


@dataclass(frozen=True)
class _Trained:
    """What remains of a run once its models have left the memory."""

    file: Path
    caption: str
    answer: Tensor
    """What the trained models answer to the proof's question."""
    sums: dict[str, int]
    """Checksums of a whole model's tensors."""
    dtype: torch.dtype
    steps: int
    seconds: float
    results: list[str]
    family: str
    token: tuple[str, Path] | None
    """A learned token, and the file with its vectors."""
    tokenizers: list[Any] | None
    """The base's; None where a token was added to them."""


def _run(decision: Decision, folder: RunFolder, processes: Processes, reporter: Reporter) -> None:
    config, started = decision.config, time.time()
    done = _train(decision, folder, processes, reporter)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not processes.is_main:
        return
    proof = prove(
        config.base,
        done.file,
        done.caption,
        done.answer,
        done.dtype,
        token=done.token,
        quantized=config.memory.quantize,
        tokenizers=done.tokenizers,
        stored=STORED[config.save.precision],
        sums=done.sums,
        checkpoint=max(saved_steps(folder.checkpoints), default=None),
    )
    learned = {}
    if done.token:
        learned = {"token": done.token[0], "embedding": folder.relative(done.token[1])}
    write_receipt(
        folder,
        result={
            "file": folder.relative(done.file),
            **learned,
            "steps": done.steps,
            "train_seconds": round(done.seconds, 3),
            "total_seconds": round(time.time() - started, 3),
        },
        proof=proof,
    )
    if config.publish.repository:
        files = [folder.path / name for name in done.results[-1:]]
        whole = files[0].with_suffix("")
        files += [whole] if whole.is_dir() else []
        files += [done.token[1]] if done.token else []
        images = sorted(folder.samples.glob(f"step-{done.steps:06d}-*.png"))
        facts = publish.Facts(done.family, done.steps, files, images)
        try:
            write_receipt(folder, published=publish.publish(config, folder.path, facts))
        except SaveFailed as error:
            reporter.warn(error.line)  # what was learned is here, and proven
    reporter.emit("finished", outcome="done", results=done.results)


def _train(
    decision: Decision, folder: RunFolder, processes: Processes, reporter: Reporter
) -> _Trained:
    config = decision.config
    control = folder.control
    waiting: list[str] = []

    def should_stop() -> bool:
        waiting.extend(control.poll())
        return any(verb.startswith("stop") for verb in waiting)

    session = Builder(decision, folder, control, reporter, processes, should_stop).build()
    _resume(session)
    if processes.is_main:
        write_receipt(folder, **_facts(session))
    needs = estimate_of(config, configs_in(session.parts), processes.device)
    reporter.emit(
        "started",
        estimated_bytes=needs.peak if needs else None,
        step=session.step,
        steps=session.total_steps,
        trainable=sum(group.count for group in session.trainables),
        device=str(processes.device),
        family=session.parts.family.name,
    )
    begun = time.time()
    try:
        loop.train(session)
    finally:
        _write_curve(session)
    seconds = time.time() - begun
    file = session.save_result(folder.name)
    caption = session.method.caption_for_proof(list(session.items.first_captions().values()))
    token = None
    if session.method.embedding() is not None:
        token = (config.method.token, embedding_path(session, folder.name))
    whole = session.method.adapter() is None and token is None
    sums = {}
    with session.result_weights():
        parts = session.parts
        if whole:
            parts = as_stored(parts, STORED[config.save.precision])
            sums = sums_of(parts)
        trained = answer(parts, caption)
    return _Trained(
        file=file,
        caption=caption,
        answer=trained,
        sums=sums,
        dtype=session.precision.dtype,
        steps=session.step,
        seconds=seconds,
        results=session.results,
        family=session.parts.family.name,
        token=token,
        tokenizers=session.parts.tokenizers if token is None else None,
    )


def _resume(session: Session) -> None:
    wanted = session.config.run.resume
    if not wanted:
        return
    path = choose(session.folder.checkpoints, wanted)
    if path is None:
        session.reporter.warn("there is no checkpoint to resume from; starting at step 0")
        return
    state = load_state(path)
    refuse_changes(state.identity, session.identity)
    session.restore(state)
    log.info("resumed from %s", path)


def _facts(session: Session) -> dict[str, Any]:
    """What the receipt says before training starts."""
    parts = session.parts
    first = {
        kind: {"text": text, "tokens": parts.family.first_tokens(parts, text)}
        for kind, text in session.items.first_captions().items()
    }
    return {
        "libraries": _versions(),
        "base": {
            "source": parts.source,
            "fingerprint": parts.fingerprint,
            "family": parts.family.name,
            "prediction_type": parts.prediction_type,
        },
        "data": session.items.as_dict(),
        "first_captions": first,
        "trainable_parameters": {g.component: g.count for g in session.trainables},
        "resumed_at": session.step,
        "total_steps": session.total_steps,
        "steps_per_epoch": session.plan.steps_per_epoch,
        "device": str(session.processes.device),
        "precision": session.config.run.mixed_precision,
        "presets": dict(session.config.run.presets),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _write_curve(session: Session) -> None:
    """``loss.png`` from the run's own events, so that it covers what came before a resume too."""
    if not session.processes.is_main:
        return
    by_step: dict[int, Event] = {}
    for event in session.folder.events:
        if event["kind"] == "progress" and event.get("stage") == "train":
            by_step[event["step"]] = event
    events = [by_step[step] for step in sorted(by_step) if step <= session.step]
    if not events:
        return
    curves = {"instance": [e["instance_loss"] for e in events]}
    if all("class_loss" in e for e in events):
        curves["class"] = [e["class_loss"] for e in events]
    picture = loss_picture([e["step"] for e in events], curves, [e["lr"] for e in events])
    write_bytes(session.folder.path / "loss.png", picture)
