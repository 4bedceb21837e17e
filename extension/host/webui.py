"""What A1111 and Forge have in common. Imports the host's ``modules`` where they are used."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

from . import settings
from .base import Checkpoint, Exposure, Folders, Memory, Settings

log = logging.getLogger("dreambooth")


class WebUI:
    """The part of ``Host`` and ``Door`` that does not touch models."""

    name = "WebUI"

    def folders(self) -> Folders:
        """Where things are, as the settings say now."""
        from modules import paths_internal as paths
        from modules import shared

        options = shared.cmd_opts
        data, models = Path(paths.data_path).absolute(), Path(paths.models_path).absolute()
        usual = models / "Stable-diffusion"
        checkpoints, loras = _given(options, "ckpt"), _given(options, "lora")
        parts = [*_given(options, "vae"), *_given(options, "text_encoder")]
        script = Path(getattr(paths, "script_path", None) or data)
        shown = [Path(p) for p in getattr(options, "gradio_allowed_path", None) or []]
        return Folders(
            data=data,
            home=settings.home(shared, data / "outputs" / "dreambooth"),
            loras=next(iter(loras), models / "Lora"),
            checkpoints=next(iter(checkpoints), usual),
            embeddings=Path(getattr(options, "embeddings_dir", None) or models / "embeddings"),
            models=(models, usual, *checkpoints[1:], *loras[1:], *parts),
            parts=(models / "text_encoder", models / "VAE", *parts),
            tokenizers=tuple(sorted(script.glob("backend/huggingface/*/*"))),
            images=(data / "outputs",),
            allowed=(*settings.more_folders(shared), *shown),
        )

    def settings(self) -> Settings:
        """What the user chose."""
        from modules import shared

        return settings.read(shared)

    def exposure(self) -> Exposure:
        """Who can reach the page, and the host's own users."""
        from modules import initialize_util, shared

        options = shared.cmd_opts
        remote = any(
            getattr(options, name, None) for name in ("share", "listen", "ngrok", "server_name")
        )
        return Exposure(
            remote=bool(remote or getattr(options, "webui_is_non_local", False)),
            api_users=_users((options.api_auth or "").split(",")),
            page_users=dict(initialize_util.get_gradio_auth_creds()),
            names=tuple(_names(options)),
            origins=tuple(
                each.strip().lower().rstrip("/")
                for each in (getattr(options, "cors_allow_origins", None) or "").split(",")
                if each.strip()
            ),
        )

    def checkpoints(self) -> list[Checkpoint]:
        """What the host lists; looks into the folders anew."""
        from modules import sd_models

        sd_models.list_models()
        return [
            Checkpoint(info.name.replace("\\", "/"), Path(info.filename).absolute(), info.title)
            for info in list(sd_models.checkpoints_list.values())
        ]

    def refresh_networks(self) -> None:
        """Makes the host see new LoRA files; without its own LoRA extension nothing happens."""
        try:
            import networks
        except ImportError:
            return
        networks.list_available_networks()

    def memory(self) -> Memory | None:
        """The CUDA device's memory; what this process holds is counted as free."""
        from modules import devices

        device = devices.device
        if getattr(device, "type", "") != "cuda":
            return None
        import torch

        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        if self.settings().release == "keep":
            held -= torch.cuda.memory_allocated(device)
        return Memory(torch.cuda.get_device_name(device), total, free + held)

    def network_tag(self, name: str, weight: float) -> str:
        """``<lora:name:1>``"""
        return f"<lora:{name}:{weight:g}>"

    # -- doors -------------------------------------------------------------------------------

    def on_tab(self, make: Callable[[], list[tuple[Any, str, str]]]) -> None:
        """Has ``make`` called when the page is drawn."""
        from modules import script_callbacks

        script_callbacks.on_ui_tabs(make)

    def on_app(self, add: Callable[[Any], None]) -> None:
        """Has ``add`` called with the FastAPI app."""
        from modules import script_callbacks

        script_callbacks.on_app_started(lambda demo, app: add(app))

    def on_settings(self) -> None:
        """Adds our section to the settings page."""
        from modules import script_callbacks, shared

        script_callbacks.on_ui_settings(lambda: settings.add_section(shared))

    # -- for both sides ------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody generates. Not to be nested: the host's lock is not reentrant."""
        from modules import call_queue

        with call_queue.queue_lock:
            yield

    def find_checkpoint(self, path: Path) -> Any:
        """The host's own record of a checkpoint.

        Raises:
            UserError: it does not list it.
        """
        from modules import sd_models

        self.checkpoints()
        for info in list(sd_models.checkpoints_list.values()):
            if os.path.realpath(info.filename) == os.path.realpath(path):
                return info
        raise UserError("the host does not list this checkpoint", where=path)


def selected_checkpoint() -> Any:
    """The host's record of the checkpoint that is selected; None where it has no checkpoint."""
    from modules import sd_models

    try:
        return sd_models.select_checkpoint()
    except FileNotFoundError:  # its word for an empty folder
        return None


def _given(options: Any, kind: str) -> list[Path]:
    """The folders of a kind that the command line names: one flag in A1111 and Forge, lists of
    folders in Forge Neo."""
    one = getattr(options, f"{kind}_dir", None)
    several = getattr(options, f"{kind}_dirs", None) or []
    return [Path(each).absolute() for each in ([one] if one else []) + list(several)]


TUNNELS = {
    "share": (".gradio.live",),
    "ngrok": (".ngrok.io", ".ngrok.app", ".ngrok.dev", ".ngrok-free.app", ".ngrok-free.dev"),
}
"""Whose names the host is reached by with a flag."""


def _names(options: Any) -> Iterator[str]:
    """The names that the command line gives the host."""
    for flag, names in TUNNELS.items():
        if getattr(options, flag, None):
            yield from names
    if getattr(options, "listen", None) or getattr(options, "server_name", None):
        machine = socket.gethostname().lower()
        yield from (machine, f"{machine}.local")
    for flag in ("server_name", "dreambooth_host"):
        for name in (getattr(options, flag, None) or "").split(","):
            if name.strip():
                yield name.strip().lower()


def _users(pairs: list[str]) -> dict[str, str]:
    """``user:password`` each, as the host reads them."""
    found = {}
    for pair in pairs:
        user, colon, password = pair.strip().partition(":")
        if colon:
            found[user] = password
    return found
