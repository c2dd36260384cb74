"""The small training loop of the lessons."""

import pytest
import torch

from qllk.lab import minimize


def test_it_goes_down_a_bowl_and_returns_the_loss_before_each_step():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    losses = minimize(model, lambda step: model.weight.square().sum(), 60, lr=0.2)
    assert losses[0] == 9.0
    assert losses[-1] < 0.1
    assert len(losses) == 60


def test_frozen_weights_stay_and_the_rate_falls_to_zero_in_the_second_half():
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    bias, rates, before = model.bias.clone(), [], None

    def loss_of(step):
        nonlocal before
        if before is not None:
            rates.append((model.weight - before).abs().max().item())
        before = model.weight.detach().clone()
        return model.weight.sum()  # Adam moves by the learning rate on a constant gradient

    minimize(model, loss_of, 10, lr=0.1)
    assert torch.equal(model.bias, bias)
    assert rates[:5] == pytest.approx([0.1] * 5, rel=1e-3)
    assert rates[5:] == pytest.approx([0.1 * 2 * (1 - step / 10) for step in range(5, 9)], abs=1e-3)
