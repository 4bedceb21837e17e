"""What the tab shows of an inspected file."""

from __future__ import annotations

from extension.tab.tasks import inspected


def test_hosts_are_shown() -> None:
    hosts = [
        {"host": "ComfyUI", "text": "loads 6 of 6 keys"},
        {"host": "A1111", "text": "does not run this family"},
    ]
    shown = str(inspected({"label": "a LoRA", "hosts": hosts}))
    assert "ComfyUI: loads 6 of 6 keys" in shown
    assert "A1111: does not run this family" in shown
