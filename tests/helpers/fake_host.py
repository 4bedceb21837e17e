"""A host that remembers what it was asked; no WebUI in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dreambooth_core.errors import UserError
from extension.host.base import Checkpoint, Exposure, Folders, Gate, Memory, Settings


@dataclass
class FakeHost:
    """``extension.host.Host``, below a folder."""

    root: Path
    name: str = "Fake 1.0"
    chosen: Settings = field(default_factory=Settings)
    exposed: Exposure = field(default_factory=Exposure)
    gpu: Memory | None = None
    allowed: tuple[Path, ...] = ()
    log: list[str] = field(default_factory=list)
    gate: Gate | None = None
    fails: set[str] = field(default_factory=set)
    """Calls that raise."""

    def folders(self) -> Folders:
        models = self.root / "models"
        return Folders(
            data=self.root,
            home=self.root / "outputs" / "dreambooth",
            loras=models / "Lora",
            checkpoints=models / "Stable-diffusion",
            embeddings=self.root / "embeddings",
            models=(models,),
            parts=(models / "text_encoder", models / "VAE"),
            images=(self.root / "outputs" / "images",),
            allowed=self.allowed,
        )

    def settings(self) -> Settings:
        return self.chosen

    def choose(self, **changes: object) -> None:
        self.chosen = replace(self.chosen, **changes)  # type: ignore[arg-type]

    def exposure(self) -> Exposure:
        return self.exposed

    def checkpoints(self) -> list[Checkpoint]:
        folder = self.folders().checkpoints
        files = sorted(folder.glob("*.safetensors"))
        return [Checkpoint(path.name, path, path.name) for path in files]

    def current_checkpoint(self) -> Path | None:
        found = self.checkpoints()
        return found[0].path if found else None

    def select_checkpoint(self, path: Path) -> None:
        if path not in [one.path for one in self.checkpoints()]:
            raise UserError("the host does not list this checkpoint", where=path)
        self._note(f"select {path.name}")

    def refresh_networks(self) -> None:
        self._note("refresh")

    def memory(self) -> Memory | None:
        return self.gpu

    def release(self, how: str) -> str:
        self._note(f"release {how}")
        return "the model waits in RAM"

    def restore(self) -> None:
        self._note("restore")

    def guard(self, gate: Gate | None) -> None:
        self.gate = gate
        self._note("guard" if gate else "unguard")

    def network_tag(self, name: str, weight: float) -> str:
        return f"<lora:{name}:{weight:g}>"

    def _note(self, what: str) -> None:
        self.log.append(what)
        if what.partition(" ")[0] in self.fails:
            raise _Strange(f"{what} failed")


class _Strange(Exception):
    """An error of the host's own, which derives from nothing else."""
