"""Losses against independent formulas in NumPy; nothing to average gives 0 that still has a gradient."""

import numpy as np
import pytest
import torch

from genre.modules.losses import LOSSES, cross_entropy, log_loss, mse

DRAW = np.random.default_rng(0)
LOGITS, CLASSES = DRAW.normal(size=(7, 5)), DRAW.integers(0, 5, size=7)
VALUES, TRUTH = DRAW.normal(size=7), DRAW.normal(size=7)
YES = DRAW.integers(0, 2, size=7).astype(float)
WEIGHTS = DRAW.random(7)


def each_cross_entropy():
    return np.log(np.exp(LOGITS).sum(1)) - LOGITS[np.arange(7), CLASSES]


def each_mse():
    return (VALUES - TRUTH) ** 2


def each_log_loss():
    share = 1 / (1 + np.exp(-VALUES))
    return -(YES * np.log(share) + (1 - YES) * np.log(1 - share))


def tensor(values):
    return torch.from_numpy(np.asarray(values)).float() if np.asarray(values).dtype.kind == "f" else torch.from_numpy(values)


CASES = [
    (cross_entropy, LOGITS, CLASSES, each_cross_entropy),
    (mse, VALUES, TRUTH, each_mse),
    (log_loss, VALUES, YES, each_log_loss),
]


@pytest.mark.parametrize(("loss", "given", "labels", "formula"), CASES, ids=["cross_entropy", "mse", "log_loss"])
def test_loss_is_the_mean_of_its_formula(loss, given, labels, formula):
    assert loss(tensor(given), tensor(labels)).item() == pytest.approx(formula().mean(), rel=1e-5)
    weighted = loss(tensor(given), tensor(labels), tensor(WEIGHTS)).item()
    assert weighted == pytest.approx((formula() * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-5)
    assert loss(tensor(given), tensor(labels), torch.zeros(7)).item() == 0.0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_empty_input_gives_zero_with_a_gradient(name):
    logits = torch.zeros((0, 3) if name == "cross_entropy" else (0,), requires_grad=True)
    value = LOSSES[name](logits, torch.zeros(0, dtype=torch.long if name == "cross_entropy" else torch.float))
    value.backward()
    assert value.item() == 0.0 and logits.grad is not None and logits.grad.numel() == 0


def test_a_class_can_be_excluded():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(np.log(2))


def test_log_loss_is_finite_far_out():
    value = log_loss(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 0.0]))
    assert value.item() == pytest.approx(100.0)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_precision_is_averaged_in_float(name):
    logits = torch.zeros((3, 4) if name == "cross_entropy" else (3,), dtype=torch.bfloat16)
    assert (
        LOSSES[name](logits, torch.zeros(3, dtype=torch.long if name == "cross_entropy" else torch.float)).dtype == torch.float32
    )
