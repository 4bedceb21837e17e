"""The device: no GPU here."""

from types import SimpleNamespace

device = SimpleNamespace(type="cpu")


def torch_gc() -> None:
    """Frees what torch caches."""
