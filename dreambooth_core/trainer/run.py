"""A run from its folder to its results: what the worker calls."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.config.loading import load
from dreambooth_core.deferral import load_libraries
from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import FAILURES, RunGone, Stopped
from dreambooth_core.evaluation.curves import loss_chart
from dreambooth_core.families.loading import pinned
from dreambooth_core.formats.adapters.hosts import host_table, unheard
from dreambooth_core.jobs import Event, Proposal, RunFolder, saved_steps, write_receipt
from dreambooth_core.jobs.checkpoints import remove_rolling
from dreambooth_core.memory.advice import is_out_of_memory, out_of_memory
from dreambooth_core.memory.needs import estimate_of
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig
from dreambooth_core.quiet import quieten
from dreambooth_core.trainer import kernels, publish
from dreambooth_core.trainer.decide import Decision, decide, told_captions
from dreambooth_core.trainer.distributed import as_launched, join
from dreambooth_core.trainer.kept import Kept
from dreambooth_core.trainer.proof import Question, ask, prove, release
from dreambooth_core.trainer.reports import Reporter, reason_of
from dreambooth_core.trainer.saving import Context
from dreambooth_core.trainer.state import (
    check_resume,
    choose,
    commit_in,
    load_state,
    refuse_changes,
)
from dreambooth_core.trainer.train import Training

log = logging.getLogger(__name__)

KEEPING = "keeping the base in memory for another run"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "bitsandbytes")


def run(
    folder: RunFolder,
    *,
    on_event: Callable[[Event], None] | None = None,
    decision: Decision | None = None,
    proposal: Proposal | None = None,
    kept: Kept | None = None,
) -> None:
    """Trains what the folder's ``config.yaml`` says, and writes everything into the folder.

    Args:
        folder: the run; its lock is the caller's.
        on_event: called with each event.
        decision: about that configuration, where it was made already.
        proposal: a configuration in place of the folder's. It takes its place once all is loaded
            and nothing speaks against it.
        kept: what this process has in memory from the run before, and keeps of this one for the
            next; None where none comes.

    Raises:
        UserError: something in the configuration or the images cannot work.
        TrainingFailed: training went wrong; what was saved stays.
        Stopped: the user asked for it; what was learned is saved.
        RunGone: the folder was deleted meanwhile.
    """
    quieten()
    load_libraries()
    config = load(TrainConfig, files=[proposal.config if proposal else folder.config])
    config = replace(config, base=pinned(config.base, _commit(config, folder)))
    config = as_launched(config)
    processes = join(config.run.device)
    reporter = None
    try:
        if decision is None or decision.config != config:
            decision = decide(config, processes=processes)
        reporter = Reporter(folder, on_event=on_event, enabled=processes.is_main)
        _run(decision, Context(decision.config, folder, processes, reporter), proposal, kept)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        saved = max(saved_steps(folder.checkpoints), default=None)
        raise out_of_memory(config, processes.device, saved) from error
    finally:
        if reporter is not None:
            reporter.close()
        processes.close()


def _run(
    decision: Decision, context: Context, proposal: Proposal | None, kept: Kept | None
) -> None:
    """Results come first, then their proof, then whatever is only shown."""
    config, folder, reporter = context.config, context.folder, context.reporter
    started = time.time()
    training = _prepared(decision, context, proposal, kept)
    try:
        question = _train(training)
    except Stopped:
        with reporter.decorative(KEEPING):
            if kept:
                kept.keep(release(training), training.untouched)
        raise
    family, steps, results = training.parts.family.name, training.step, training.results.written
    untouched = training.untouched
    del training
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if question is None:
        return
    reporter.emit("progress", stage="proof")
    proof = prove(question, config, max(saved_steps(folder.checkpoints), default=None))
    seconds = {"total_seconds": round(time.time() - started, 3)}
    is_adapter = METHODS[config.method.kind].is_adapter
    hosts = host_table(question.file, family) if is_adapter else []
    told = partial(write_receipt, folder, result=seconds, proof=proof, hosts=hosts)
    context.saver("the receipt", told)
    warning = unheard(hosts) if config.save.layout == "host" else None
    if warning:
        reporter.warn(warning)
    remove_rolling(folder.checkpoints)
    with reporter.decorative("drawing the curve"):
        _write_curve(folder, steps)
    if config.publish.repository:
        files = [folder.path / results[-1]]
        whole = files[0].with_suffix("")  # of a fine-tuned model
        files += [whole] if whole.is_dir() else []
        files += [question.token[1]] if question.token else []
        images = sorted(folder.samples.glob(f"step-{steps:06d}-*.png"))
        facts = publish.Facts(family, steps, files, images)
        with reporter.decorative("publishing"):
            write_receipt(folder, published=publish.publish(config, folder.path, facts))
    with reporter.decorative(KEEPING):
        if kept:
            kept.keep(question.base, untouched)
    reporter.close()  # before the ending: it may have something to warn of
    reporter.emit("finished", outcome="done", results=results)


def _prepared(
    decision: Decision, context: Context, proposal: Proposal | None, kept: Kept | None
) -> Training:
    """The training at the step where it begins. Nothing of the run has changed until all that can
    be refused has been."""
    folder, reporter = context.folder, context.reporter
    point = _resume_point(context)
    try:
        training = Training(decision, context, kept or Kept())
    except Stopped as stop:
        raise Stopped(f"{stop.what}; what was made so far is kept", where=stop.where) from None
    if point is not None:
        state = load_state(point)
        refuse_changes(state.identity, training.trained.identity)
        training.restore(state)
        log.info("resumed from %s", point)
    facts = _facts(training)
    if context.processes.is_main:
        context.asked.look()
        if proposal is not None:
            proposal.accept(folder)
        reporter.begin(context.config.log)
        context.saver("the receipt", lambda: write_receipt(folder, **facts))
        training.watch.estimate = partial(_estimate, training)
    reporter.emit(
        "started",
        step=training.step,
        steps=training.total_steps,
        trainable=sum(facts["trainable_parameters"].values()),
        device=facts["device"],
        family=training.parts.family.name,
    )
    return training


def _estimate(training: Training) -> int | None:
    """The memory in bytes that the run should take."""
    needs = None
    with training.reporter.decorative("estimating the memory"):
        needs = estimate_of(training.config, training.parts.configs, training.processes.device)
    return needs.peak if needs else None


def _resume_point(run: Context) -> Path | None:
    """The checkpoint to resume from, if there is any.

    Raises:
        UserError: there is no such checkpoint, or it is not of these settings.
    """
    if not run.config.run.resume:
        return None
    path = choose(run.folder.checkpoints, run.config.run.resume)
    if path is None:
        run.reporter.warn("there is no checkpoint to resume from; starting at step 0")
    else:
        check_resume(path, run.config)
    return path


def _train(training: Training) -> Question | None:
    """Trains, and writes the result; what it is asked by the proof, None in all processes but the
    first."""
    folder, reporter = training.folder, training.reporter
    begun = time.time()
    if training.config.memory.compile:  # which happens where blocks are first used
        reporter.emit("progress", stage="compiling")
    try:
        with kernels.chosen(training):
            training.train()
    except Exception:
        with reporter.decorative("drawing the curve"):
            training.asked.look()
            if training.processes.is_main:
                _write_curve(folder, training.step)
        raise
    seconds = time.time() - begun
    reporter.emit("progress", stage="saving")
    try:
        file = training.save_result(folder.name)
    except (Stopped, RunGone):
        raise
    except Exception:
        if not training.trained.shards:  # the others, with their pieces, are elsewhere
            _keep_learned(training)
        raise
    if file is None:  # the other processes bring their pieces to what the main one does
        if training.trained.shards:
            training.sample()
            with training.trained.as_result(whole=True):
                pass
        return None
    token = training.results.token(folder.name)
    learned = {"token": token[0], "embedding": folder.relative(token[1])} if token else {}
    result = {
        "file": folder.relative(file),
        **learned,
        **training.best.as_dict(),
        "steps": training.step,
        "train_seconds": round(seconds, 3),
    }
    training.saver("the receipt", lambda: write_receipt(folder, result=result))
    # Before the proof, which takes a whole model off the device.
    training.sample()
    return ask(training, file, token)


def _keep_learned(training: Training) -> None:
    """A state to resume from, where no result could be written. Why there was none is what ends
    the run, whatever happens here."""
    try:
        training.trained.save_rolling(training.step)
    except FAILURES as error:
        log.exception("the state of the last step could not be kept")
        training.reporter.warn(f"the state of the last step could not be kept: {reason_of(error)}")


def _commit(config: TrainConfig, folder: RunFolder) -> str | None:
    """The hub's commit of the base that a resumed run began with."""
    if not config.run.resume or not saved_steps(folder.checkpoints):
        return None
    path = choose(folder.checkpoints, config.run.resume)
    return commit_in(path) if path else None


def _facts(training: Training) -> dict[str, Any]:
    """What the receipt says before training starts."""
    parts, config = training.parts, training.config
    return {
        "libraries": _versions(),
        "base": {
            "source": parts.source,
            "fingerprint": parts.fingerprint,
            "commit": parts.commit,
            "family": parts.family.name,
            "prediction_type": parts.prediction_type,
        },
        "data": training.items.as_dict(),
        "first_captions": told_captions(parts, training.items),
        "trainable_parameters": {g.component: g.count for g in training.trained.trainables},
        "resumed_at": training.step,
        "total_steps": training.total_steps,
        "steps_per_epoch": training.plan.steps_per_epoch,
        "device": str(training.processes.device),
        "precision": config.run.mixed_precision,
        "memory": {"budget": config.memory.budget},
        "presets": dict(config.run.presets),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _write_curve(folder: RunFolder, last: int) -> None:
    """``loss.png`` up to the step ``last``, from the run's own events, so that it covers what
    came before a resume too."""
    by_step: dict[int, Event] = {}
    for event in folder.events:
        if event["kind"] == "progress" and event.get("stage") == "train":
            by_step[event["step"]] = event
    events = [by_step[step] for step in sorted(by_step) if step <= last]
    if not events:
        return
    curves = {"instance": [e["instance_loss"] for e in events]}
    if all("class_loss" in e for e in events):
        curves["class"] = [e["class_loss"] for e in events]
    image = loss_chart([e["step"] for e in events], curves, [e["lr"] for e in events])
    write_bytes(folder.path / "loss.png", image)
