"""Diffusion-DPO's loss of pairs."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth_core.objective.objective import preference


def test_a_model_that_is_its_reference_has_log_2() -> None:
    errors = torch.tensor([[0.3, 0.1], [0.2, 0.7]])
    assert preference(errors, errors, 5000.0).tolist() == pytest.approx([math.log(2)] * 2)


def test_it_is_the_papers_formula() -> None:
    now, before = torch.tensor([[0.3], [0.2]]), torch.tensor([[0.31], [0.18]])
    won, lost = 0.3 - 0.31, 0.2 - 0.18
    expected = -math.log(1 / (1 + math.exp(0.5 * 200 * (won - lost))))
    assert preference(now, before, 200.0).item() == pytest.approx(expected, rel=1e-4)


def test_it_pulls_the_good_image_as_hard_as_it_pushes_the_bad_one() -> None:
    errors = torch.tensor([[0.3, 0.1], [0.2, 0.7]], requires_grad=True)
    preference(errors, torch.rand(2, 2), 10.0).sum().backward()
    good, bad = errors.grad if errors.grad is not None else torch.zeros(2, 2)
    assert torch.equal(good, -bad)
    assert (good > 0).all()


def test_pairs_that_are_told_apart_already_pull_less() -> None:
    errors = torch.tensor([[0.1, 0.5], [0.9, 0.5]], requires_grad=True)
    preference(errors, torch.full((2, 2), 0.5), 10.0).sum().backward()
    assert errors.grad is not None and errors.grad[0, 0] < errors.grad[0, 1]
