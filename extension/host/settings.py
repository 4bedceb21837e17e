"""Our section of the host's settings page, and what it says. The same on all hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import GENERATES, RELEASES, Settings

SECTION = ("dreambooth", "DreamBooth")
PREFIX = "dreambooth_"
PLACES = ("home", "folders")


def add_section(shared: Any) -> None:
    """Adds our options to ``shared.opts``. Called from ``on_ui_settings``."""
    import gradio

    def add(name: str, default: Any, label: str, info: str, component: Any = None, **given: Any):  # type: ignore[no-untyped-def]
        arguments = given or None
        made = shared.OptionInfo(default, label, component, arguments, section=SECTION).info(info)
        # Who may call the host's API may not thereby widen what ours may read.
        made.restrict_api = name in PLACES
        shared.opts.add_option(PREFIX + name, made)

    was = Settings()
    add(
        "home",
        "",
        "Folder for runs, uploads and presets",
        "empty: outputs/dreambooth; a folder elsewhere needs --gradio-allowed-path for images "
        "to be shown",
    )
    add(
        "folders",
        "",
        "More folders that images and models may be read from",
        "one a line; needed where the page is open to others (--listen, --share) and for the API",
        gradio.Textbox,
        lines=2,
    )
    add(
        "release",
        was.release,
        "The host's model while the GPU trains",
        "ram: it waits in RAM; unload: it leaves RAM too; keep: it stays on the GPU",
        gradio.Radio,
        choices=list(RELEASES),
    )
    add(
        "generate",
        was.generate,
        "Generating while the GPU trains",
        "allow: the model comes back to the GPU for it, if both fit",
        gradio.Radio,
        choices=list(GENERATES),
    )
    add("publish", was.publish, "Put finished results into the Lora and checkpoint folders", "")
    add("preview", was.preview, "Give them a validation image as preview", "")
    add("weight", was.weight, "Preferred weight of new adapters", "", gradio.Number)
    add("preset", was.preset, "Preset that the tab begins with", "empty: the one that fits")


def read(shared: Any) -> Settings:
    """The options as they are now."""
    was = Settings()
    release, generate = _value(shared, "release", ""), _value(shared, "generate", "")
    return Settings(
        release=release if release in RELEASES else was.release,
        generate=generate if generate in GENERATES else was.generate,
        publish=bool(_value(shared, "publish", was.publish)),
        preview=bool(_value(shared, "preview", was.preview)),
        preset=str(_value(shared, "preset", was.preset) or ""),
        weight=float(_value(shared, "weight", was.weight) or was.weight),
    )


def home(shared: Any, default: Path) -> Path:
    """Our folder: the command line's, the setting's, or the host's output folder."""
    given = getattr(shared.cmd_opts, "dreambooth_dir", None) or _value(shared, "home", "")
    return Path(str(given).strip()).expanduser().absolute() if given else default


def more_folders(shared: Any) -> list[Path]:
    """The folders that the user named besides."""
    lines = str(_value(shared, "folders", "") or "").splitlines()
    return [Path(line.strip()).expanduser() for line in lines if line.strip()]


def _value(shared: Any, name: str, default: Any) -> Any:
    return shared.opts.data.get(PREFIX + name, default)
