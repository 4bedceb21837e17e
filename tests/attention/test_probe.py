"""A kernel is chosen because it ran and was right, never because it can be imported."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreambooth_core.attention import probe
from dreambooth_core.attention.probe import Verdict, choose
from dreambooth_core.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh():
    probe._probe.cache_clear()
    yield
    probe._probe.cache_clear()


def broken_xformers(monkeypatch: pytest.MonkeyPatch, attention: object) -> None:
    """An xformers that can be imported and whose attention is ``attention``."""
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def right(query, key, value, attn_bias=None):  # type: ignore[no-untyped-def]
    heads = [t.transpose(1, 2) for t in (query, key, value)]
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)


def test_sdpa_is_chosen_here():
    assert choose("auto", CPU, torch.float32, 40) == Verdict("sdpa", True, True, "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 40, 160])
def test_chunked_works_for_every_size(dtype, size):
    assert choose("chunked", CPU, dtype, size).works


def test_a_working_xformers_comes_first(monkeypatch):
    broken_xformers(monkeypatch, right)
    assert choose("auto", CPU, torch.float32, 40).kernel == "xformers"


def test_an_xformers_that_raises_is_passed_over_and_named_when_forced(monkeypatch):
    def raises(*_: object, **__: object) -> None:
        raise NotImplementedError("No operator found for memory_efficient_attention_backward")

    broken_xformers(monkeypatch, raises)
    assert choose("auto", CPU, torch.float32, 40).kernel == "sdpa"
    with pytest.raises(UserError, match=r"heads of 40: No operator found"):
        choose("xformers", CPU, torch.float32, 40)


def test_an_xformers_without_gradients_is_found_out(monkeypatch):
    broken_xformers(monkeypatch, lambda q, k, v, attn_bias=None: right(q, k, v).detach())
    assert choose("auto", CPU, torch.float32, 40).kernel == "sdpa"
    with pytest.raises(UserError, match="does not require grad"):
        choose("xformers", CPU, torch.float32, 40)


def test_an_xformers_with_wrong_gradients_is_found_out(monkeypatch):
    def wrong(query, key, value, attn_bias=None):  # type: ignore[no-untyped-def]
        return right(query, key.detach() + 0 * key, value)

    broken_xformers(monkeypatch, wrong)
    assert choose("auto", CPU, torch.float32, 40).kernel == "sdpa"
    with pytest.raises(UserError, match="key's gradient is wrong"):
        choose("xformers", CPU, torch.float32, 40)


def test_an_xformers_with_nan_is_found_out(monkeypatch):
    broken_xformers(monkeypatch, lambda q, k, v, attn_bias=None: right(q, k, v) * float("nan"))
    with pytest.raises(UserError, match="output is wrong"):
        choose("xformers", CPU, torch.float32, 40)


def test_a_missing_xformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(UserError, match="xformers is not installed"):
        choose("xformers", CPU, torch.float32, 40)


def test_where_torch_has_only_its_math_kernel_chunked_is_chosen():
    with sdpa_kernel(SDPBackend.MATH):
        assert choose("auto", CPU, torch.float32, 40).kernel == "chunked"
        forced = choose("sdpa", CPU, torch.float32, 40)
    assert forced.works
    assert not forced.frugal
    assert "math" in forced.reason


def test_the_trial_runs_in_any_surroundings():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert choose("auto", CPU, torch.float32, 24).kernel == "sdpa"
    probe._probe.cache_clear()
    with torch.inference_mode():
        assert choose("auto", CPU, torch.float32, 24).kernel == "sdpa"


def test_a_trial_is_remembered(monkeypatch):
    calls = []

    def counted(*args: object) -> object:
        calls.append(1)
        return probe.sdpa_attention(*args)  # type: ignore[arg-type]

    monkeypatch.setitem(probe.IMPLEMENTATIONS, "sdpa", counted)
    for _ in range(3):
        choose("sdpa", CPU, torch.float32, 40)
    assert len(calls) == 2  # two shapes, once
    choose("sdpa", CPU, torch.float32, 48)
    assert len(calls) == 4


def test_an_unknown_kernel_is_named():
    with pytest.raises(UserError, match=r"'flash3' is not known.*chunked"):
        choose("flash3", CPU, torch.float32, 40)
