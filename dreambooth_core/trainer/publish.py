"""Publishing a result on the Hugging Face hub, with a model card that says how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dreambooth_core import __version__
from dreambooth_core.bases.locate import hub_id
from dreambooth_core.disk import write_text
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.families.names import record_of
from dreambooth_core.formats.privacy import cleaned
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig

CARD = "README.md"

UNPUBLISHED = [
    *("checkpoints/*", "checkpoint-*", "class_images/*", "samples/*", "logs/*", "earlier-*"),
    *(".*", "*.jsonl", "*.lock", "*.log"),
    *(CARD, "args.json", "config.yaml", "receipt.json", "loss.png"),
]
"""What a run's folder has for itself, where a published pipeline lies in the same folder."""


@dataclass(frozen=True)
class Facts:
    """What a card says of a run besides its configuration."""

    family: str
    steps: int
    files: list[Path]
    """Results: files, and folders whose contents are published."""
    images: list[Path] = field(default_factory=list)
    """Sample images of the last step."""


def check(config: TrainConfig) -> None:
    """Refuses, before training, what could not be published after it.

    Raises:
        UserError: no token, no licence, or no consent.
    """
    options = config.publish
    if not options.repository:
        return
    if find_token() is None:
        raise UserError(
            "publishing needs a token of the Hugging Face hub",
            where="publish.repository",
            do="Set HF_TOKEN, run 'hf auth login', or leave publish.repository empty.",
        )
    if not options.licence:
        raise UserError(
            "a published model needs a licence, and the base's may ask for its own",
            where="publish.licence",
            do="Name it as the hub does, such as creativeml-openrail-m or openrail++.",
        )
    if not options.consent:
        raise UserError(
            "publishing needs the consent of whoever is shown, or made what is shown",
            where="publish.consent",
            do="Say in a few words who agreed, or that nobody had to.",
        )


def find_token() -> str | None:
    """The token of the environment, or of ``hf auth login``. It is no option of the
    configuration, which is written down and passed on."""
    from huggingface_hub import get_token

    return get_token()


def publish(config: TrainConfig, folder: Path, facts: Facts) -> str:
    """Uploads results, sample images and the card; returns the repository's address.

    Args:
        config: of the run.
        folder: the run's folder, where the card is written too.
        facts: what was made.

    Raises:
        UserError: see :func:`check`.
        SaveFailed: the hub refused, or was not reached; what was made stays here.
    """
    from huggingface_hub import HfApi

    check(config)
    options = config.publish
    api = HfApi(token=find_token())
    card = folder / CARD
    write_text(card, model_card(config, facts))
    try:
        repository = api.create_repo(options.repository, private=options.private, exist_ok=True)
        name = repository.repo_id
        upload = partial(api.upload_file, repo_id=name)
        for path in dict.fromkeys(facts.files):
            if path.is_dir():
                api.upload_folder(repo_id=name, folder_path=str(path), ignore_patterns=UNPUBLISHED)
            else:
                upload(path_or_fileobj=str(path), path_in_repo=path.name)
        for path in facts.images:
            upload(path_or_fileobj=str(path), path_in_repo=f"images/{path.name}")
        upload(path_or_fileobj=str(card), path_in_repo=CARD)
    except (OSError, ValueError, RuntimeError) as error:
        # The hub's errors are OSErrors (HTTP) and ValueErrors (names).
        raise SaveFailed(
            f"publishing failed: {' '.join(str(error).split())[:300]}",
            where=f"publish.repository: {options.repository}",
            do="The results are in the run's folder; publish them by hand, or resume the run.",
        ) from error
    return str(repository)


def model_card(config: TrainConfig, facts: Facts) -> str:
    """The card: the hub's front matter, then prompts, base, settings, images and rights."""
    from huggingface_hub import ModelCardData

    options, full = config.publish, METHODS[config.method.kind].trains_base
    base = hub_id(config.base.model)
    prompts = [c.instance_prompt for c in config.concepts if c.instance_prompt]
    what = "all weights" if full else f"a {config.method.kind} adapter"
    said = [prompt for prompt in config.validation.prompts for _ in range(config.validation.images)]
    shown = zip(facts.images, said, strict=False)
    record = record_of(facts.family)
    kind = (record.hub_tag if record is not None else "") or facts.family.replace("_", "-")
    front = ModelCardData(
        base_model=base,
        license=options.licence,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "dreambooth", kind, config.method.kind],
        instance_prompt=prompts[0] if prompts else "",
        widget=[{"text": text, "output": {"url": f"images/{path.name}"}} for path, text in shown],
    )
    lines = [
        "---",
        front.to_yaml(),
        "---",
        "",
        f"# {options.repository.rpartition('/')[2]}",
        "",
        f"DreamBooth: {what} of `{base or Path(config.base.model).name}`, "
        f"made with dreambooth {__version__}.",
        "",
        "## Prompts",
        "",
        *(f"- `{prompt}`" for prompt in prompts),
        *(f"- class: `{c.class_prompt}`" for c in config.concepts if c.class_prompt),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _settings(config, facts)),
        "",
        "## Samples",
        "",
        *(f"![sample](images/{path.name})" for path in facts.images),
        "",
        "## Rights",
        "",
        f"Licence: {options.licence}. The licence of the base holds for this model too.",
        f"Consent: {options.consent}",
        "",
    ]
    return cleaned("\n".join(lines))


def _settings(config: TrainConfig, facts: Facts) -> list[tuple[str, object]]:
    optim, run = config.optim, config.run
    found: list[tuple[str, object]] = [
        ("family", facts.family),
        ("method", config.method.kind),
        ("text encoder trained", config.method.train_text_encoder),
        ("steps", facts.steps),
        ("batch size", run.batch_size * run.gradient_accumulation_steps),
        ("learning rate", optim.learning_rate or "default"),
        ("optimizer", optim.optimizer),
        ("resolution", config.data.resolution),
        ("prior preservation", config.prior.loss_weight if config.prior.enabled else "no"),
        ("seed", run.seed),
    ]
    if not METHODS[config.method.kind].trains_base:
        found[2:2] = [("rank", config.method.rank), ("alpha", config.method.alpha)]
    if run.presets:
        named = ", ".join(f"{name} (version {v})" for name, v in run.presets.items())
        found.append(("presets", named))
    return found
