"""Adapters that are damaged: every method, kind of damage and tensor, under every command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults.case import Case, Expected
from tests.faults.inputs._adapters import (
    METHODS,
    NAMES,
    WIDTH,
    Tensors,
    adapter,
    base,
    draw,
    lora,
    tails,
    write,
    write_lora,
    write_peft,
)

Change = Callable[[Tensor], Tensor]

SHAPES: dict[str, Change] = {
    "a single number": lambda t: torch.tensor(1.0),
    "one dimension": lambda t: t.reshape(-1),
    "a dimension more": lambda t: t.unsqueeze(0),
    "a 2 x 2 kernel": lambda t: (
        t.flatten(2)[:, :, :1].reshape(*t.shape[:2], 1, 1).repeat(1, 1, 2, 2)
        if t.ndim > 2
        else t.reshape(*t.shape, 1, 1).repeat(1, 1, 2, 2)
    ),
    "five dimensions": lambda t: t.reshape(1, 1, 1, 1, -1),
    "no rows": lambda t: t[:0],
    "no columns": lambda t: t[:, :0],
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "a column more": lambda t: torch.cat([t, t[:, :1]], dim=1),
    "turned": lambda t: t.transpose(0, 1)[: t.shape[1] - 1],
}
VALUES: dict[str, Change] = {
    "NaN": lambda t: _set(t, float("nan")),
    "infinity": lambda t: _set(t, float("inf")),
    "minus infinity": lambda t: _set(t, float("-inf")),
    "only NaN": lambda t: torch.full_like(t, float("nan")),
}
TYPES: dict[str, torch.dtype] = {
    "int8": torch.int8,
    "int64": torch.int64,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "uint16": torch.uint16,
}
GOOD_TYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
    "fp8": torch.float8_e4m3fn,
    "fp8 e5m2": torch.float8_e5m2,
}
ALPHAS: dict[str, Tensor] = {
    "NaN": torch.tensor(float("nan")),
    "infinity": torch.tensor(float("inf")),
    "minus infinity": torch.tensor(float("-inf")),
    "two numbers": torch.ones(2),
    "no number": torch.zeros(0),
    "a matrix": torch.ones(2, 2),
    "bool": torch.tensor(True),
    "complex": torch.tensor(1 + 1j),
    "1e38": torch.tensor(1e38),
    "fp8 NaN": torch.tensor(float("nan")).to(torch.float8_e4m3fn),
}
STRANGE_ALPHAS: dict[str, Tensor] = {
    "zero": torch.tensor(0.0),
    "negative": torch.tensor(-4.0),
    "one in a list": torch.tensor([2.0]),
    "whole": torch.tensor(4),
    "fp8": torch.tensor(2.0).to(torch.float8_e4m3fn),
    "fp64": torch.tensor(2.0, dtype=torch.float64),
}

MERGES = (
    "cat",
    "svd",
    "linear",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune_svd",
)
COMMANDS = ("inspect", "merge", "bake", "resize", "convert", "convert peft")


def arguments(command: str, folder: Path, file: str) -> Sequence[str | Path]:
    """A command line that reads the adapter ``file``."""
    if command == "inspect":
        return ["inspect", file]
    if command == "bake":
        return ["bake", base(folder), file, "--out", "out.safetensors"]
    if command == "resize":
        return ["resize", file, "out.safetensors", "--rank", "2", "--base", base(folder)]
    if command.startswith("convert"):
        layout = command.partition(" ")[2] or "kohya"
        return ["convert", file, "out.safetensors", "--layout", layout]
    method = command.partition(" ")[2] or "cat"
    write_lora(folder / "b.safetensors")
    given = ["merge", file, "b.safetensors:0.5", "--method", method, "--out", "out.safetensors"]
    return [*given, "--base", base(folder)] if method == "cat" else given


def cases() -> Iterator[Case]:
    """Everything below."""
    yield from _shapes()
    yield from _values()
    yield from _types()
    yield from _alphas()
    yield from _incomplete()
    yield from _merging()
    yield from _names()
    yield from _configurations()
    yield from _inflated()
    yield from _bases()
    yield from _sampling()
    yield from _controls()


def case(
    name: str,
    command: str,
    tensors: Callable[[], Tensors],
    *,
    form: str = "safetensors",
    metadata: dict[str, str] | None = None,
    expected: Expected = "refused",
) -> Case:
    """A command on a file with these tensors."""

    def make(folder: Path) -> Sequence[Any]:
        return arguments(command, folder, write(folder, tensors(), form, metadata))

    return Case("adapters", f"{name}, {form}: {command}", make, expected)


def _set(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


def _spread() -> Iterator[str]:
    """The commands in turn: each kind of damage meets each of them somewhere."""
    while True:
        yield from COMMANDS


FORMS = ("safetensors", "pickle", "bare pickle")


def _shapes() -> Iterator[Case]:
    commands = _spread()
    for method in METHODS:
        for tail, tensor in tails(method).items():
            if tail == "alpha":
                continue
            for kind, change in SHAPES.items():
                try:
                    changed = change(tensor)
                except (RuntimeError, IndexError):
                    continue
                if changed.shape == tensor.shape or _fits_too(method, tail, kind):
                    continue
                # Whether it fits a base is known only where there is one.
                sized = kind in ("a row more", "a column more") or (tail, kind) in MEANT
                first = "bake" if sized else "inspect"
                second = next(c for c in commands if c != first)
                for command in (first, second):
                    yield case(
                        f"{method} {tail} with {kind}",
                        command,
                        lambda m=method, t=tail, c=changed: adapter(m, **{t: c}),
                        form=FORMS[len(kind) % 3],
                        expected="either" if sized and command not in BASED else "refused",
                    )


MEANT = (
    ("lora_down.weight", "a 2 x 2 kernel"),
    ("lora_mid.weight", "a 2 x 2 kernel"),
    ("lokr_w1", "turned"),
    ("oft_blocks", "a 2 x 2 kernel"),
    *(("diff", kind) for kind in ("one dimension", "a dimension more", "a 2 x 2 kernel", "turned")),
)
"""Shapes that another weight may well have."""
BASED = ("bake", "merge")
"""Commands that compare an adapter with a base, or with another that fits it."""


def _fits_too(method: str, tail: str, kind: str) -> bool:
    """Shapes that mean something after all."""
    flat = kind == "one dimension" and tail in ("dora_scale",)
    stage = (tail, kind) == ("oft_blocks", "a dimension more")  # BOFT of one stage
    return (
        flat or stage or (tail == "dora_scale" and kind in ("a dimension more", "five dimensions"))
    )


def _values() -> Iterator[Case]:
    commands = _spread()
    for method in METHODS:
        for tail, tensor in tails(method).items():
            for kind, change in VALUES.items():
                if tail == "alpha" and kind != "NaN":
                    continue
                changed = change(tensor)
                for form in ("safetensors", "pickle"):
                    yield case(
                        f"{method} {tail} with {kind}",
                        next(commands),
                        lambda m=method, t=tail, c=changed: adapter(m, **{t: c}),
                        form=form,
                    )
    for command in COMMANDS[1:]:
        yield case(
            "overflow of the product",
            command,
            lambda: {k: t if k.endswith("alpha") else t * 3e37 for k, t in lora().items()},
        )
    for flag in ("--half", "--float"):
        yield Case(
            "adapters",
            f"too large for {flag}",
            lambda f, flag=flag: _convert(f, flag),
            "refused" if flag == "--half" else "accepted",
        )


def _convert(folder: Path, flag: str) -> Sequence[str]:
    tensors = {k: t * 1e6 for k, t in lora().items()}
    return ["convert", write(folder, tensors, "safetensors"), "out.safetensors", flag]


def _types() -> Iterator[Case]:
    commands = _spread()
    for method in METHODS:
        for tail, tensor in tails(method).items():
            if tail == "alpha":
                continue
            for kind, dtype in TYPES.items():
                changed = tensor.to(dtype)
                yield case(
                    f"{method} {tail} as {kind}",
                    next(commands),
                    lambda m=method, t=tail, c=changed: adapter(m, **{t: c}),
                    form=FORMS[len(kind) % 2],
                )
        for kind, dtype in GOOD_TYPES.items():
            for command in ("inspect", "merge", "bake"):
                yield case(
                    f"{method} as {kind}",
                    command,
                    lambda m=method, d=dtype: {
                        k: t.to(d) if t.ndim else t for k, t in adapter(m).items()
                    },
                    expected="accepted",
                )


def _alphas() -> Iterator[Case]:
    commands = _spread()
    for method in ("lora", "loha", "lokr", "oft"):
        for kind, value in ALPHAS.items():
            for form in ("safetensors", "pickle"):
                command = next(commands)
                if kind == "1e38":
                    command = "bake"
                expected: Expected = "either" if (method, kind) == ("oft", "1e38") else "refused"
                yield case(
                    f"{method} alpha is {kind}",
                    command,
                    lambda m=method, v=value: adapter(m, alpha=v),
                    form=form,
                    expected=expected,
                )
        for kind, value in STRANGE_ALPHAS.items():
            for command in ("inspect", "merge", "bake"):
                yield case(
                    f"{method} alpha is {kind}",
                    command,
                    lambda m=method, v=value: adapter(m, alpha=v),
                    expected="either" if kind == "negative" else "accepted",
                )


def _incomplete() -> Iterator[Case]:
    commands = _spread()
    for method in METHODS:
        found = tails(method)
        for tail in found:
            if tail in ("alpha", "dora_scale", "lora_mid.weight") or len(found) == 1:
                continue
            if method == "oft":
                continue
            for command in ("inspect", next(c for c in commands if c != "inspect")):
                yield case(
                    f"{method} without {tail}",
                    command,
                    lambda m=method, t=tail: adapter(m, **{t: None}),
                    form="safetensors" if command == "inspect" else "pickle",
                )
        for other in METHODS:
            if other <= method or {method, other} <= {"lora", "locon", "tucker", "dora"}:
                continue
            yield case(
                f"{method} and {other} in one module",
                next(commands),
                lambda m=method, o=other: {
                    **{f"{NAMES[0]}.{t}": v for t, v in tails(o).items()},
                    **{f"{NAMES[0]}.{t}": v for t, v in tails(m).items()},
                },
            )
    for command in COMMANDS:
        yield case("two names for one weight", command, _twice)
        yield case("LoHa with one core", command, lambda: adapter("loha", hada_t1=draw(4, 4, 3, 3)))
        yield case(
            "LoKr with a factor twice", command, lambda: adapter("lokr", lokr_w1_a=draw(2, 2))
        )
        yield case("alpha alone", command, lambda: {f"{NAMES[0]}.alpha": torch.tensor(1.0)})
        yield case("nothing", command, dict)
        yield case("bias of another size", command, lambda: adapter("lora", diff_b=draw(33)))
        yield case("bias as matrix", command, lambda: adapter("lora", diff_b=draw(32, 32)))
        yield case("OFT series of no size", command, lambda: _oft_rows(draw(8, 5)))
        yield case("OFT series in three dimensions", command, lambda: _oft_rows(draw(8, 6, 1)))
        yield case(
            "magnitude of another size", command, lambda: adapter("dora", dora_scale=draw(31, 1))
        )
        yield case("no magnitude", command, lambda: adapter("dora", dora_scale=draw(0, 1)))


def _twice() -> Tensors:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {**lora(), f"{path}.lora_A.weight": draw(4, WIDTH)}


def _oft_rows(tensor: Tensor) -> Tensors:
    return {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.oft_R.weight": tensor}


def _merging() -> Iterator[Case]:
    """Each way to merge, with what does not fit together."""
    other = lora()
    spoilt: dict[str, Callable[[], Tensors]] = {
        "another width": lambda: lora(width=48),
        "a NaN": lambda: {**other, f"{NAMES[0]}.lora_up.weight": torch.full((32, 4), float("nan"))},
        "ranks that differ within": lambda: {**other, f"{NAMES[0]}.lora_up.weight": draw(32, 3)},
        "a convolution for a matrix": lambda: {
            f"{name}.{tail}": t for name in NAMES for tail, t in tails("locon").items()
        },
        "a diff of another size": lambda: {f"{NAMES[0]}.diff": draw(16, 16)},
        "a LoHa of another size": lambda: {
            f"{NAMES[0]}.{k}": t[..., :31] if t.shape[-1:] == (32,) else t
            for k, t in tails("loha").items()
        },
        "numbers near the largest": lambda: {
            k: t if k.endswith("alpha") else t * 1e30 for k, t in other.items()
        },
        "alpha of infinity": lambda: {**other, f"{NAMES[0]}.alpha": torch.tensor(float("inf"))},
    }
    for method in MERGES:
        for kind, tensors in spoilt.items():
            yield case(f"merged with {kind}", f"merge {method}", tensors)
        yield case("merged", f"merge {method}", lora, expected="accepted")
    for given in ("2", "-1", "0", "1.5", "nan", "x"):
        for flag in ("--rank", "--density", "--seed"):
            if (flag, given) in (
                ("--rank", "2"),
                ("--seed", "2"),
                ("--seed", "0"),
                ("--seed", "-1"),
            ):
                continue

            def make(folder: Path, flag: str = flag, given: str = given) -> Sequence[str]:
                write_lora(folder / "a.safetensors")
                made = ["merge", "a.safetensors", "a.safetensors", "--method", "ties_svd"]
                return [*made, f"{flag}={given}", "--out", "out.safetensors"]

            yield Case("adapters", f"merge with {flag} {given}", make)


KEPT = ("an unknown module", "a layer of a language model", "a Flux block", "half of a name")
"""Names that a file of an unknown family may have: layers need no base to be merged or resized."""


def _names() -> Iterator[Case]:
    """Keys that belong to no module, or that no program should believe."""
    long, digits = "x" * 3000, "9" * 5000
    keys = {
        "an unknown module": "lora_unet_roof_0_to_q",
        "a control character": "lora_unet_down\x1b[31m_blocks",
        "a line end": "lora_unet_down\n_blocks_0",
        "a long name": f"lora_unet_{long}",
        "a number of 5000 digits": f"lora_unet_down_blocks_{digits}_attentions_0_proj_in",
        "an input block of 5000 digits": f"lora_unet_input_blocks_{digits}_1_proj_in",
        "a block of another script": "lora_unet_down_blocks_²_attentions_0_proj_in",
        "a traversal": "lora_unet_../../x",
        "an empty name": "",
        "only dots": "....",
        "a prefix alone": "lora_unet_",
        "peft's prefix many times": "base_model.model." * 200 + "x",
        "a layer of a language model": "base_model.model.model.layers.0.self_attn.q_proj",
        "a Flux block": "lora_unet_double_blocks_0_img_attn_qkv",
        "a direction mark": "lora_unet_\u202edown",
        "half of a name": NAMES[0][:-5],
    }
    commands = [c for c in COMMANDS if c != "inspect"]
    for kind, key in keys.items():
        for command in commands:
            yield case(
                f"a module named with {kind}",
                command,
                lambda k=key: {f"{k}.{tail}": t for tail, t in tails("lora").items()},
                form="pickle" if command == "merge" else "safetensors",
                expected="either" if kind in KEPT else "refused",
            )
        yield case(
            f"a module named with {kind}",
            "inspect",
            lambda k=key: {**lora(), **{f"{k}.{tail}": t for tail, t in tails("lora").items()}},
            expected="either",
        )
    for tail in ("lora_sideways.weight", "lora_up.bias", "b1.weight", "on_input", "vera_lambda_d"):
        for command in commands:
            yield case(
                f"a tensor {tail}",
                command,
                lambda t=tail: {**lora(), f"{NAMES[0]}.{t}": draw(4, 4)},
            )


CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q"]}


def _configurations() -> Iterator[Case]:
    """peft's ``adapter_config.json``, and the same in the header of a diffusers file."""
    values: dict[str, tuple[str, ...]] = {
        "r": ('"four"', "-4", "1.5", "[4]", "NaN", "1e400", "true", '"' + "9" * 5000 + '"'),
        "lora_alpha": ('"x"', "NaN", "Infinity", "[1]", "{}", "1e400", "true"),
        "rank_pattern": ("[1]", '"x"', '{"to_q": "x"}', '{"to_q": -1}', '{"to_q": 0}', "3"),
        "alpha_pattern": ("[1]", '"x"', '{"to_q": "x"}', '{"to_q": NaN}', '{"to_q": [1]}', "3"),
        "peft_type": ('"MAGIC"', "3", '"IA3"', "[1]", "{}"),
        "fan_in_fan_out": ("true",),
        "base_model_name_or_path": ("[1]", "{}", "3"),
        "use_rslora": ('"maybe"', "[1]"),
    }
    heads = ("inspect", "merge")
    for key, texts in values.items():
        for text in texts:
            rest = ", ".join(f'"{k}": {_json(v)}' for k, v in CONFIG.items() if k != key)
            config = f'{{{rest}, "{key}": {text}}}'
            for command in heads:
                yield _peft(f"{key} is {text[:30]}", command, config)
                packed = config.replace('"', '"unet.', 1).replace(', "', ', "unet.')
                yield case(
                    f"lora_adapter_metadata with {key} {text[:30]}",
                    command,
                    _diffusers,
                    metadata={"lora_adapter_metadata": packed},
                )
    whole = {
        "empty": "",
        "no JSON": "{",
        "a list": "[]",
        "a word": '"x"',
        "deep": '{"a": ' + "[" * 60_000 + "]" * 60_000 + "}",
        "a key twice": '{"r": 4, "r": 8}',
        "wide": '{"a": [' + "[]," * 1_100_000 + "[]]}",
        "a catastrophic expression": _json({**CONFIG, "alpha_pattern": {"(([a-z0-9._])+)+!": 2}}),
        "a polynomial expression": _json({**CONFIG, "rank_pattern": {".*" * 30 + "!": 2}}),
    }
    for kind, text in whole.items():
        for command in heads:
            yield _peft(f"is {kind}", command, text)
            if kind not in ("a catastrophic expression", "a polynomial expression"):
                yield case(
                    f"lora_adapter_metadata is {kind}",
                    command,
                    _diffusers,
                    metadata={"lora_adapter_metadata": text},
                )
    for text in ("0", "-1", "²", "9" * 5000, "x", "1.5"):
        yield case(
            f"layers per block {text[:10]}",
            "merge",
            lora,
            metadata={"dreambooth_layers_per_block": text},
            expected="either",
        )
    for key in ("ss_tag_frequency", "modelspec.trigger_phrase", "ss_network_dim", "ss_v2"):
        for text in ("{", "[" * 60_000, '{"a": 3}', '{"a": {"b": "c"}}', "\x1b[31m", "9" * 9000):
            for command in ("inspect", "merge"):
                yield case(
                    f"{key} is {text[:20]!r}",
                    command,
                    lora,
                    metadata={key: text},
                    expected="accepted",
                )


def _json(value: object) -> str:
    import json

    return json.dumps(value)


def _diffusers() -> Tensors:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {f"{path}.lora_A.weight": draw(4, WIDTH), f"{path}.lora_B.weight": draw(WIDTH, 4)}


def _peft(name: str, command: str, config: str, expected: Expected = "refused") -> Case:
    def make(folder: Path) -> Sequence[Any]:
        return arguments(command, folder, write_peft(folder, config))

    return Case("adapters", f"adapter_config.json {name}: {command}", make, expected)


def _inflated() -> Iterator[Case]:
    """Small files that ask for much more than they hold."""
    asked: dict[str, Callable[[], Tensors]] = {
        "a LoRA of a million by a million": lambda: {
            f"{NAMES[0]}.lora_down.weight": torch.zeros(1, 1_000_000),
            f"{NAMES[0]}.lora_up.weight": torch.ones(1_000_000, 1),
        },
        "a LoRA of rank 60,000": lambda: {
            f"{NAMES[0]}.lora_down.weight": torch.ones(60_000, 32),
            f"{NAMES[0]}.lora_up.weight": torch.ones(32, 60_000),
        },
        "a LoKr that unfolds": lambda: adapter(
            "lokr",
            lokr_w1=torch.ones(600, 600),
            lokr_w2_a=torch.ones(600, 4),
            lokr_w2_b=torch.ones(4, 600),
        ),
        "a LoHa of rank 2,000": lambda: {
            f"{NAMES[0]}.{k}": torch.ones(*(2000 if n == 4 else 400 for n in t.shape))
            for k, t in tails("loha").items()
            if k != "alpha"
        },
        "60,000 modules": lambda: {
            f"lora_unet_down_blocks_{i}_attentions_0_proj_in.alpha": torch.zeros(())
            for i in range(60_000)
        },
        "a kernel of 2,000 by 2,000": lambda: {
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.ones(1, 64, 1, 1),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": torch.ones(1, 1, 2000, 2000),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.ones(64, 1, 1, 1),
        },
    }
    for kind, tensors in asked.items():
        for command in ("inspect", "merge", "resize", "convert"):
            real = kind == "a LoHa of rank 2,000" and command != "merge"
            yield case(kind, command, tensors, expected="either" if real else "refused")


def _bases() -> Iterator[Case]:
    """NaN and infinity in the models that adapters are added to or taken from."""
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    for kind, value in (("NaN", float("nan")), ("infinity", float("inf"))):

        def spoil(tensors: Tensors, value: float = value) -> None:
            tensors[key].view(-1)[3] = value

        def spoilt(folder: Path, spoil: Any = spoil, kind: str = kind) -> Path:
            return base(folder, spoil, kind)

        def extract(folder: Path, spoilt: Any = spoilt, turned: bool = False) -> Sequence[Any]:
            pair = [base(folder), spoilt(folder)]
            return ["extract", *(pair[::-1] if turned else pair), "out.safetensors", "--rank", "2"]

        def bake(folder: Path, spoilt: Any = spoilt) -> Sequence[Any]:
            write_lora(folder / "a.safetensors")
            return ["bake", spoilt(folder), "a.safetensors", "--out", "out.safetensors"]

        def merge(folder: Path, spoilt: Any = spoilt) -> Sequence[Any]:
            file = write(folder, adapter("dora"), "safetensors")
            return ["merge", file, "--base", spoilt(folder), "--out", "out.safetensors"]

        yield Case("adapters", f"extract from a model with {kind}", extract)
        yield Case(
            "adapters", f"extract from a base with {kind}", lambda f, e=extract: e(f, turned=True)
        )
        yield Case("adapters", f"bake into a model with {kind}", bake)
        yield Case("adapters", f"merge a DoRA on a model with {kind}", merge)


def _sampling() -> Iterator[Case]:
    """Damaged adapters and embeddings on their way to an image."""
    damaged: dict[str, Callable[[], Tensors]] = {
        "a NaN": lambda: adapter("dora", dora_scale=torch.full((32, 1), float("nan"))),
        "a row more": lambda: adapter("diff", diff=draw(33, 32)),
        "numbers that overflow": lambda: {
            k: t if k.endswith("alpha") else t * 3e37 for k, t in lora().items()
        },
    }
    for kind, tensors in damaged.items():
        yield _sample(f"with {kind}", "--adapter", tensors)
    rows = torch.ones(2, WIDTH)
    embeddings: dict[str, Tensor] = {
        "a NaN": rows * float("nan"),
        "another width": torch.ones(2, 31),
        "no rows": rows[:0],
    }
    for kind, tensor in embeddings.items():
        yield _sample(
            f"with an embedding of {kind}", "--embedding", lambda t=tensor: {"emb_params": t}
        )
    yield _sample("with a good adapter", "--adapter", lambda: adapter("lora"), "accepted")


def _sample(
    name: str, flag: str, tensors: Callable[[], Tensors], expected: Expected = "refused"
) -> Case:
    def make(folder: Path) -> Sequence[Any]:
        file = write(folder, tensors(), "safetensors")
        size = ["--steps", "1", "--width", "64", "--height", "64", "--device", "cpu"]
        return ["sample", "a dog", "--base", base(folder), flag, file, *size]

    return Case("adapters", f"sample {name}", make, expected)


def _controls() -> Iterator[Case]:
    for method in METHODS:
        for form in FORMS:
            for command in COMMANDS:
                if command == "convert peft" and method in ("tucker", "oft", "diff"):
                    continue  # peft has no such thing, and says so
                yield case(
                    f"a good {method}",
                    command,
                    lambda m=method: adapter(m),
                    form=form,
                    expected="accepted",
                )
    for command in ("inspect", "merge", "convert"):
        yield _peft("is good", command, _json(CONFIG), "accepted")
        yield case("a good diffusers file", command, _diffusers, expected="accepted")
