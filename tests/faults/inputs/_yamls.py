"""Damaged yamls of latent diffusion, named on the command line or beside a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Expected
from tests.faults.inputs._models import (
    NAN,
    put,
    replace,
    say,
    set_key,
)

YAML = """\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: {parameterization}
    linear_start: {linear_start}
    linear_end: {linear_end}
    timesteps: {timesteps}
    scale_factor: {scale_factor}
    unet_config:
      target: {target}
      params:
        in_channels: {in_channels}
        out_channels: 4
        model_channels: {model_channels}
        num_heads: {num_heads}
        num_head_channels: {num_head_channels}
        context_dim: {context_dim}
    cond_stage_config: {cond}
"""
GOOD_YAML = {
    "parameterization": "eps",
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "scale_factor": 0.18215,
    "target": "UNetModel",
    "in_channels": 4,
    "model_channels": 32,
    "num_heads": 4,
    "num_head_channels": -1,
    "context_dim": 32,
    "cond": "{target: FrozenCLIPEmbedder, params: {version: base-clip}}",
}
BAD_YAML: dict[str, tuple[str, ...]] = {
    "parameterization": ("nothing", "1", "[v]", "{a: b}"),
    "linear_start": (".nan", ".inf", "-1", "2", "text", "[1]"),
    "linear_end": (".nan", "-.inf", "0", "text", "{a: 1}"),
    "timesteps": ("0", "-1", "1000000000", "text", "1.5", "[1000]"),
    "scale_factor": (".nan", ".inf", "0", "-1", "text", "[1]"),
    "in_channels": ("9", "text", "[4]", "-1"),
    "model_channels": ("320", "0", "text", "[32]"),
    "num_heads": ("0", "-3", "text", "[4]", "1000000000", "1.5", "5"),
    "num_head_channels": ("0", "-3", "text", "[4]", "1000000000", "5"),
    "context_dim": ("768", "text", "[]", "{a: 1}"),
    "cond": ("7", "[1]", "text", "{params: 1}", "{params: {version: 7}}"),
}
YAML_TEXTS: dict[str, str | bytes | Callable[[Path], None] | None] = {
    "missing": None,
    "empty": "",
    "text": "hello",
    "a list": "[1, 2]",
    "no params": "model: {}",
    "a tab": "model:\n\tparams: 1\n",
    "binary": bytes(range(256)) * 4,
    "UTF-16": "model: {}".encode("utf-16"),
    "code": "model: !!python/object/apply:os.system ['touch hacked']\n",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "deep": "a: " + "[" * 20_000 + "]" * 20_000,
    "a key twice": "model: {params: {unet_config: {params: {}}}}\nmodel: {}\n",
    "interpolation": "model: {params: {unet_config: {params: {num_heads: '${oc.env:HOME}'}}}}\n",
    "twenty megabytes": "a: " + "x" * 20_000_000,
    "a fifo": os.mkfifo,
    "a folder": os.mkdir,
    "a terabyte": lambda file: (file.touch(), os.truncate(file, 1 << 40))[0],
    "a link to a device": lambda file: os.symlink("/dev/zero", file),
}


def cases() -> Iterator[Case]:
    yield _yaml("control", YAML.format(**GOOD_YAML), "accepted", given=True)
    yield _yaml("control", YAML.format(**GOOD_YAML), "accepted", given=False)
    for key, values in BAD_YAML.items():
        for number, value in enumerate(values):
            text = YAML.format(**{**GOOD_YAML, key: value})
            yield _yaml(f"{key} = {value}", text, "refused", given=number % 2 == 0)
    for what, content in YAML_TEXTS.items():
        yield _yaml(what, content, "refused", given=True)
        beside: Expected = "either" if content is None or callable(content) else "refused"
        yield _yaml(what, content, beside, given=False)
    for key in ("beta", "hidden_act", "num_attention_heads"):
        for value in (NAN, "nothing", -1, 10**9, [1]):
            yield _yaml(
                f"clip config {key} = {value}",
                YAML.format(**GOOD_YAML),
                "either" if key == "beta" else "refused",
                given=False,
                clip={key: value},
            )


def _yaml(
    what: str,
    content: Any,
    expected: Expected,
    *,
    given: bool,
    clip: dict[str, Any] | None = None,
) -> Case:
    """A yaml named on the command line, or beside a file whose own metadata is taken away."""

    def make(folder: Path) -> list[str]:
        base = put(folder, "sd1", "safetensors")
        say("format", "pt", bare=True)(base)
        replace(base.with_suffix(".yaml"), None)
        file = folder / "given.yaml" if given else base.with_suffix(".yaml")
        if callable(content):
            content(file)
        else:
            replace(file, content)
        if clip:
            set_key("config.json", next(iter(clip)), next(iter(clip.values())))(
                folder / "base-clip"
            )
        more = ["--original_config_file", "given.yaml"] if given else []
        return ["convert", base.name, "out.safetensors", "--yaml", "never", *more]

    place = "given" if given else "beside"
    return Case("models", f"yaml {place}: {what}", make, expected)
