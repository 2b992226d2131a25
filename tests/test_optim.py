"""Optimizer groups, rates and their schedule."""

import copy
import math

import pytest
import torch

from common.optim import build_optimizers, lr_scale, trained, update
from common.start_state import StartState
from conftest import random_model
from model import FutureSeed, SeedConfig

RATES = dict(alpha=1e-2, u=0.0, beta=2e-2, S=3e-2)


def test_every_parameter_is_in_one_group_at_its_rate():
    net = random_model()
    seed = FutureSeed(SeedConfig(input_gate=True), net.cfg)
    names = {id(p): n for n, p in [*net.named_parameters(), *seed.named_parameters()]}
    for muon in (None, dict(lr=5e-2, momentum=0.9)):
        optimizers = build_optimizers(net, seed, 1e-3, 0.1, (0.9, 0.99), RATES, muon)
        assert list(optimizers) == (["adamw"] if muon is None else ["muon", "adamw"])
        found = {names[id(p)]: (kind, g["lr"], g["weight_decay"]) for kind, o in optimizers.items()
                 for g in o.param_groups for p in g["params"]}  # fmt: skip
        assert set(found) == set(names.values())
        assert found["emb.weight"] == ("adamw", 1e-3, 0.1)
        assert found["blocks.1.att.w0"] == ("adamw", 2e-3, 0.0)
        assert found["blocks.1.att.key.weight"] == (("muon", 5e-2, 0.1) if muon else ("adamw", 1e-3, 0.1))
        assert found["alpha"] == ("adamw", 1e-2, 0.0)
        assert found["beta"] == ("adamw", 2e-2, 0.0)
        assert muon is None or optimizers["muon"].param_groups[0]["momentum"] == 0.9
        assert not seed.u.requires_grad, "a rate of 0 holds it fixed"
        assert id(seed.u) not in {id(p) for p in trained(optimizers)}


def test_without_a_rate_only_the_seed_is_trained():
    net = random_model()
    start = StartState(net.cfg)
    (group,) = build_optimizers(net, start, None, 0.1, (0.9, 0.99), RATES, dict(lr=5e-2))["adamw"].param_groups
    assert [id(p) for p in group["params"]] == [id(start.S)]
    assert not any(p.requires_grad for p in net.parameters())


def test_the_schedule_rises_then_falls():
    scale = lambda step: lr_scale(step, 100, 10, "cosine")
    assert [scale(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert scale(55) == pytest.approx(0.1 + 0.45)
    assert scale(100) == pytest.approx(0.1)
    assert scale(1000) == pytest.approx(0.1), "a run that is prolonged goes on at the end's rate"
    assert lr_scale(99, 100, 10, "constant") == 1.0
    down = [lr_scale(s, 110, 10, "warmdown") for s in (50, 79, 80, 95, 110)]
    assert down == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1])
    down = [lr_scale(s, 110, 10, "halfway") for s in (50, 60, 85, 110)]
    assert down == pytest.approx([1.0, 1.0, 0.51, 0.02])
    assert lr_scale(0, 1, 0, "cosine") == 1.0


def test_an_update_is_adamws_at_the_scaled_rate_and_clears_the_gradients():
    net = random_model(n_layer=1)
    twin = copy.deepcopy(net)
    optimizers = build_optimizers(net, None, 1e-3, 0.1, (0.9, 0.99), RATES)
    plain = torch.optim.AdamW(
        [{**g, "lr": g["lr"] * 0.25} for g in twin.param_groups(1e-3, 0.1)], betas=(0.9, 0.99), foreach=False
    )
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        p.grad = torch.full_like(p, math.pi)
        q.grad = p.grad.clone()
    update(optimizers, 0.25)
    plain.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert p.grad is None
