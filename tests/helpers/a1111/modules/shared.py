"""Command line, settings."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from modules import paths_internal

cmd_opts = SimpleNamespace(
    api_auth=os.environ.get("STAND_IN_API_AUTH"),
    gradio_auth=os.environ.get("STAND_IN_GRADIO_AUTH"),
    ckpt_dir=None,
    lora_dir=os.path.join(paths_internal.models_path, "Lora"),
    embeddings_dir=os.path.join(paths_internal.data_path, "embeddings"),
    gradio_allowed_path=[],
    dreambooth_dir=None,
    share=False,
    listen=bool(os.environ.get("STAND_IN_LISTEN")),
    ngrok=None,
    server_name=None,
    cors_allow_origins=os.environ.get("STAND_IN_CORS"),
    dreambooth_host=os.environ.get("STAND_IN_HOST"),
)


class OptionInfo:
    """One setting."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        section: tuple[str, str] | None = None,
    ) -> None:
        self.default, self.label, self.section = default, label, section
        self.component, self.component_args = component, component_args
        self.comment_after = ""

    def info(self, text: str) -> OptionInfo:
        self.comment_after += text
        return self


class Options:
    """All settings."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


opts = Options()
