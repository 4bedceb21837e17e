"""Reading what drivers say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dreambooth_core.environment import machine


def test_nvidia_smi_with_and_without_capability() -> None:
    text = "NVIDIA GeForce RTX 4090, 581.15, 8.9\nTesla P40, 581.15, 6.1\n"
    found = machine.parse_nvidia_smi(text)
    assert [(g.name, g.driver, g.capability) for g in found] == [
        ("NVIDIA GeForce RTX 4090", (581, 15), (8, 9)),
        ("Tesla P40", (581, 15), (6, 1)),
    ]
    (old,) = machine.parse_nvidia_smi("GeForce GTX 970, 470.82.01\n")
    assert (old.driver, old.capability) == ((470, 82, 1), None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        'Field "compute_cap" is not a valid field to query.\n',
        "No devices were found\n",
    ],
)
def test_what_is_no_list_of_gpus_is_none(text: str) -> None:
    assert machine.parse_nvidia_smi(text) == ()


@pytest.mark.skipif(sys.platform == "win32", reason="makes a program out of a shell script")
def test_an_old_driver_is_asked_again_without_the_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *compute_cap*) echo "not a valid field"; exit 2;; esac\n'
        'echo "GeForce GTX 970, 470.82.01"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "platform", "linux")
    (gpu,) = machine.detect().nvidia
    assert gpu.driver == (470, 82, 1)


def test_rocm_lists_processors_as_nodes_too(tmp_path: Path) -> None:
    for number, version in enumerate((0, 0)):
        node = tmp_path / str(number)
        node.mkdir()
        (node / "properties").write_text(f"cpu_cores_count 8\ngfx_target_version {version}\n")
    assert not machine._has_rocm_gpu(tmp_path)
    (tmp_path / "1" / "properties").write_text("simd_count 64\ngfx_target_version 110000\n")
    assert machine._has_rocm_gpu(tmp_path)
    assert not machine._has_rocm_gpu(tmp_path / "missing")


def test_adapters_of_linux(tmp_path: Path) -> None:
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    (device / "device").write_text("0x56A0\n")
    (tmp_path / "card0-HDMI-A-1").mkdir()
    assert machine._linux_adapters(tmp_path) == [("8086", "56a0")]
