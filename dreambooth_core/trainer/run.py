"""A run from its folder to its results: what the worker calls."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.config.loading import load
from dreambooth_core.deferral import load_libraries
from dreambooth_core.devices import STORED
from dreambooth_core.errors import RunGone, Stopped
from dreambooth_core.evaluation.curves import loss_picture
from dreambooth_core.families.loading import pinned
from dreambooth_core.formats.adapters.hosts import host_table, unheard
from dreambooth_core.formats.storage import write_bytes
from dreambooth_core.jobs import Event, Proposal, RunFolder, saved_steps, write_receipt
from dreambooth_core.jobs.checkpoints import remove_rolling
from dreambooth_core.memory.advice import is_out_of_memory, out_of_memory
from dreambooth_core.memory.needs import estimate_of
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig
from dreambooth_core.quiet import quieten
from dreambooth_core.trainer import loop, publish
from dreambooth_core.trainer.asked import Asked
from dreambooth_core.trainer.build import Builder
from dreambooth_core.trainer.decide import Decision, decide, told_captions
from dreambooth_core.trainer.processes import Processes, join
from dreambooth_core.trainer.proof import answer, as_stored, prove, sums_of
from dreambooth_core.trainer.report import Reporter
from dreambooth_core.trainer.results import embedding_path
from dreambooth_core.trainer.saving import Saver
from dreambooth_core.trainer.session import Session
from dreambooth_core.trainer.sharding import as_launched
from dreambooth_core.trainer.state import (
    check_resume,
    choose,
    commit_in,
    load_state,
    refuse_changes,
)

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "bitsandbytes")


def run(
    folder: RunFolder,
    *,
    on_event: Callable[[Event], None] | None = None,
    decision: Decision | None = None,
    proposal: Proposal | None = None,
) -> None:
    """Trains what the folder's ``config.yaml`` says, and writes everything into the folder.

    Args:
        folder: the run; its lock is the caller's.
        on_event: called with each event.
        decision: about that configuration, where it was made already.
        proposal: a configuration in place of the folder's. It takes its place once all is loaded
            and nothing speaks against it.

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
        reporter = Reporter(
            folder,
            tensorboard=config.log.tensorboard,
            board_folder=config.log.folder,
            wandb_project=config.log.project if config.log.wandb else None,
            on_event=on_event,
            enabled=processes.is_main,
        )
        _run(decision, folder, processes, reporter, proposal)
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

    folder: RunFolder
    file: Path
    caption: str
    answer: Tensor
    """What the trained models answer to the proof's question."""
    sums: dict[str, int]
    """Checksums of a whole model's tensors."""
    dtype: torch.dtype
    steps: int
    results: list[str]
    family: str
    adapter: bool
    """Whether the file holds an adapter."""
    token: tuple[str, Path] | None
    """A learned token, and the file with its vectors."""
    masters: tuple[str, ...]
    """Networks that were trained whole from unrounded weights."""
    tokenizers: list[Any] | None
    """The base's; None where a token was added to them."""


def _run(
    decision: Decision,
    folder: RunFolder,
    processes: Processes,
    reporter: Reporter,
    proposal: Proposal | None,
) -> None:
    """Results come first, then their proof, then whatever is only shown."""
    config, started = decision.config, time.time()
    asked = Asked(folder)
    saver = Saver(folder.path, Path(config.run.output), asked, reporter)
    session = _prepared(decision, folder, processes, reporter, asked, saver, proposal)
    done = _train(session)
    del session
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if done is None:
        return
    reporter.emit("progress", stage="proof")
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
        masters=done.masters,
    )
    seconds = {"total_seconds": round(time.time() - started, 3)}
    hosts = host_table(done.file, done.family) if done.adapter else []
    saver("the receipt", lambda: write_receipt(folder, result=seconds, proof=proof, hosts=hosts))
    warning = unheard(hosts) if config.save.layout == "host" else None
    if warning:
        reporter.warn(warning)
    remove_rolling(folder.checkpoints)
    with reporter.decorative("drawing the curve"):
        _write_curve(folder, done.steps)
    if config.publish.repository:
        with reporter.decorative("publishing"):
            write_receipt(folder, published=publish.publish(config, folder.path, _published(done)))
    reporter.close()  # before the ending: it may have something to warn of
    reporter.emit("finished", outcome="done", results=done.results)


def _published(done: _Trained) -> publish.Facts:
    """What of a run goes to the hub."""
    here = done.folder
    files = [here.path / name for name in done.results[-1:]]
    whole = files[0].with_suffix("")
    files += [whole] if whole.is_dir() else []
    files += [done.token[1]] if done.token else []
    images = sorted(here.samples.glob(f"step-{done.steps:06d}-*.png"))
    return publish.Facts(done.family, done.steps, files, images)


def _prepared(
    decision: Decision,
    folder: RunFolder,
    processes: Processes,
    reporter: Reporter,
    asked: Asked,
    saver: Saver,
    proposal: Proposal | None,
) -> Session:
    """The session at the step where it begins. Nothing of the run has changed until all that can
    be refused has been."""
    config = decision.config
    point = _resume_point(config, folder, reporter)
    try:
        session = Builder(decision, folder, reporter, processes, asked, saver).build()
    except Stopped as stop:
        raise Stopped(f"{stop.what}; what was made so far is kept", where=stop.where) from None
    if point is not None:
        state = load_state(point)
        refuse_changes(state.identity, session.identity)
        session.restore(state)
        log.info("resumed from %s", point)
    if processes.is_main:
        asked.look()
        if proposal is not None:
            proposal.accept(folder)
        reporter.begin()
        saver("the receipt", lambda: write_receipt(folder, **_facts(session)))
    needs = None
    with reporter.decorative("estimating the memory"):
        needs = estimate_of(config, session.parts.configs, processes.device)
    if needs and processes.is_main:
        estimated = {"budget": config.memory.budget, "estimated_bytes": needs.peak}
        saver("the receipt", lambda: write_receipt(folder, memory=estimated))
    reporter.emit(
        "started",
        estimated_bytes=needs.peak if needs else None,
        step=session.step,
        steps=session.total_steps,
        trainable=sum(group.count for group in session.trainables),
        device=str(processes.device),
        family=session.parts.family.name,
    )
    return session


def _resume_point(config: TrainConfig, folder: RunFolder, reporter: Reporter) -> Path | None:
    """The checkpoint to resume from, if there is any.

    Raises:
        UserError: there is no such checkpoint, or it is not of these settings.
    """
    if not config.run.resume:
        return None
    path = choose(folder.checkpoints, config.run.resume)
    if path is None:
        reporter.warn("there is no checkpoint to resume from; starting at step 0")
        return None
    check_resume(path, config)
    return path


def _train(session: Session) -> _Trained | None:
    """Trains, and writes the result; None in all processes but the first."""
    folder, reporter = session.folder, session.reporter
    begun = time.time()
    try:
        loop.train(session)
    except Exception:
        with reporter.decorative("drawing the curve"):
            session.asked.look()
            if session.processes.is_main:
                _write_curve(folder, session.step)
        raise
    seconds = time.time() - begun
    reporter.emit("progress", stage="saving")
    file = _saved_result(session)
    if file is None:
        _followed(session)
        return None
    session.keep_best(folder.name, file)
    token, learned = None, {}
    if session.method.embedding() is not None:
        token = (session.config.method.placeholder_token, embedding_path(session, folder.name))
        learned = {"token": token[0], "embedding": folder.relative(token[1])}
    result = {
        "file": folder.relative(file),
        **learned,
        **_measured(session),
        "steps": session.step,
        "train_seconds": round(seconds, 3),
    }
    session.saver("the receipt", lambda: write_receipt(folder, result=result))
    # Before the proof, which takes a whole model off the device.
    session.sample()
    caption = session.method.caption_for_proof(list(session.items.first_captions().values()))
    sums: dict[str, int] = {}
    with session.result_weights(), session.whole():
        parts = session.parts
        if session.method.adapter() is None and token is None:  # a whole model
            stored = STORED[session.config.save.precision]
            parts = as_stored(parts, stored)
            sums = sums_of(parts)
        trained = answer(parts, caption)
    masters = bool(sums) and session.precision.trained != session.precision.dtype
    return _Trained(
        folder=folder,
        file=file,
        caption=caption,
        answer=trained,
        sums=sums,
        dtype=session.precision.dtype,
        steps=session.step,
        results=session.results,
        family=session.parts.family.name,
        adapter=METHODS[session.config.method.kind].is_adapter,
        token=token,
        masters=tuple(session.method.trained_models) if masters else (),
        tokenizers=session.parts.tokenizers if token is None else None,
    )


def _measured(session: Session) -> dict[str, Any]:
    """Which step was best, for the receipt; empty where nothing was measured."""
    best = session.record.best
    if best is None:
        return {}
    record = session.record
    numbers = {"best_loss": record.losses.get(best), "best_score": record.scores.get(best)}
    return {"best_step": best, **{k: v for k, v in numbers.items() if v is not None}}


def _followed(session: Session) -> None:
    """What the other processes still do: bring their pieces to what the main one does."""
    if session.shards:
        session.sample()
        with session.result_weights(), session.whole():
            pass


def _saved_result(session: Session) -> Path | None:
    """Writes the result; where that fails, what was learned is saved to be resumed from."""
    try:
        return session.save_result(session.folder.name)
    except (Stopped, RunGone):
        raise
    except Exception:
        if not session.shards:  # the others, with their pieces, are elsewhere
            session.save_rolling()
        raise


def _commit(config: TrainConfig, folder: RunFolder) -> str | None:
    """The hub's commit of the base that a resumed run began with."""
    if not config.run.resume or not saved_steps(folder.checkpoints):
        return None
    path = choose(folder.checkpoints, config.run.resume)
    return commit_in(path) if path else None


def _facts(session: Session) -> dict[str, Any]:
    """What the receipt says before training starts."""
    parts = session.parts
    return {
        "libraries": _versions(),
        "base": {
            "source": parts.source,
            "fingerprint": parts.fingerprint,
            "commit": parts.commit,
            "family": parts.family.name,
            "prediction_type": parts.prediction_type,
        },
        "data": session.items.as_dict(),
        "first_captions": told_captions(parts, session.items),
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
    picture = loss_picture([e["step"] for e in events], curves, [e["lr"] for e in events])
    write_bytes(folder.path / "loss.png", picture)
