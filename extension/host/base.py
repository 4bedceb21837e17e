"""What a host must be able to do for the engine. Knows no host; standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Folders:
    """Where a host keeps things."""

    data: Path
    """The root of the user's data; what lies below it, the host's pages may show."""
    home: Path
    """Ours: runs, uploads, presets and thumbnails lie in it."""
    loras: Path
    checkpoints: Path
    """Where new checkpoints are written."""
    embeddings: Path
    models: tuple[Path, ...] = ()
    """More folders of models, read only."""
    parts: tuple[Path, ...] = ()
    """Where text encoders and autoencoders in files of their own lie."""
    tokenizers: tuple[Path, ...] = ()
    """Folders of tokenizers that come with the host, or of whole models' small files."""
    images: tuple[Path, ...] = ()
    """Where the host's own images go."""
    allowed: tuple[Path, ...] = ()
    """Folders that the user named in the settings: images and models may be read there."""

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.home / "runs"

    @property
    def uploads(self) -> Path:
        """Images that came through the page, a folder for each subject."""
        return self.home / "uploads"

    @property
    def presets(self) -> Path:
        """The user's own presets."""
        return self.home / "presets"

    @property
    def diffusers(self) -> Path:
        """Models as folders of diffusers: the host would list a folder's parts."""
        return self.home / "models"

    @property
    def thumbnails(self) -> Path:
        """Small copies of images, for the page; may be deleted at any time."""
        return self.home / "thumbnails"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that the host lists."""

    name: str
    """The file below its models folder, with ``/``: unique, and stays when the host hashes it."""
    path: Path
    title: str
    """As the host shows it."""


@dataclass(frozen=True)
class Memory:
    """Memory of the host's device, in bytes, and what of it this process holds."""

    device: str
    total: int
    free: int
    """What no process holds, and what the host's models would leave if they went."""


@dataclass(frozen=True)
class Settings:
    """What the user chose in the host's settings page."""

    release: str = "ram"
    """What happens to the host's model while the GPU trains: ``ram`` (moved there), ``unload``
    (out of RAM too) or ``keep`` (it stays on the GPU)."""
    generate: str = "refuse"
    """Generating meanwhile: ``refuse`` or ``allow``."""
    publish: bool = True
    """Put finished results where the host lists them."""
    preview: bool = True
    """Give them a preview out of the validation images."""
    preset: str = ""
    """The preset that the tab begins with; empty: the recipe that fits the base."""
    weight: float = 1.0
    """Preferred weight of new adapters."""


RELEASES = ("ram", "unload", "keep")
GENERATES = ("refuse", "allow")


@dataclass(frozen=True)
class Exposure:
    """Who can reach the host's page."""

    remote: bool = False
    """Others than this machine's users (``--listen``, ``--share``, ``--server-name`` …)."""
    api_users: dict[str, str] = field(default_factory=dict)
    """``--api-auth``: user → password."""
    page_users: dict[str, str] = field(default_factory=dict)
    """``--gradio-auth``, likewise."""
    names: tuple[str, ...] = ()
    """Under which it is reached besides ``localhost`` and addresses in numbers; ``.gradio.live``
    stands for all names that end so."""
    origins: tuple[str, ...] = ()
    """Web pages (``https://name:port``) that the host lets use it."""


Gate = Callable[[], None]
"""Called before the host touches its GPU for an image; raises to refuse."""


class Host(Protocol):
    """One host, as the service sees it. Every method may be called from any thread."""

    name: str
    """``AUTOMATIC1111 1.9.4``, for messages."""

    def folders(self) -> Folders:
        """Where things are, as the settings say now."""

    def settings(self) -> Settings:
        """What the user chose."""

    def exposure(self) -> Exposure:
        """Who can reach the page, and the host's own users."""

    def checkpoints(self) -> list[Checkpoint]:
        """What it lists, in its order; looks into the folders anew."""

    def current_checkpoint(self) -> Path | None:
        """The file that it generates with; None before it has one."""

    def select_checkpoint(self, path: Path) -> None:
        """Makes it generate with a file of its models folder; waits for an image in the making.

        Raises:
            UserError: the host does not list it or cannot load it.
        """

    def refresh_networks(self) -> None:
        """Makes it see new files in the Lora folder."""

    def memory(self) -> Memory | None:
        """Its GPU's memory; None where it has none."""

    def release(self, how: str) -> str:
        """Takes its model off the GPU; waits for an image in the making.

        Args:
            how: ``ram`` or ``unload``.

        Returns:
            What was freed, in words; empty if there was nothing.
        """

    def restore(self) -> None:
        """Undoes :meth:`release`. Harmless where nothing was released."""

    def guard(self, gate: Gate | None) -> None:
        """Has ``gate`` called before each use of the model; None takes it away."""

    def network_tag(self, name: str, weight: float) -> str:
        """What a prompt says to use an adapter: ``<lora:name:1>``."""


class Door(Protocol):
    """The host as its extension's doors see it: what is registered once for each start."""

    def on_tab(self, make: Callable[[], list[tuple[Any, str, str]]]) -> None:
        """Has ``make`` called when the page is drawn: ``[(blocks, title, element id)]``."""

    def on_app(self, add: Callable[[Any], None]) -> None:
        """Has ``add`` called with the FastAPI app when it stands."""

    def on_settings(self) -> None:
        """Adds our section to the settings page."""
