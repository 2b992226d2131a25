"""Future-Seed: the equation, what may and what may not influence a seed, and its file."""

import math

import pytest
import torch

from common.batches import left_pad
from common.errors import UserError
from conftest import random_model
from model import FutureSeed, SeedConfig

L, C, H, N = 4, 128, 2, 64


def seed_for(net, noise=0.5, **options):
    """A FutureSeed with parameters away from their initial values."""
    fs = FutureSeed(SeedConfig(**options), net.cfg)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in fs.parameters():
            p.add_(noise * torch.randn(p.shape, generator=g))
    return fs


@pytest.fixture(scope="module")
def net():
    return random_model(n_layer=L, n_embd=C)


def tokens(B, T, seed=0):
    return torch.randint(0, 50, (B, T), generator=torch.Generator().manual_seed(seed))


def seeded_states(net, fs, prompt):
    """An independent reading of the definition: layer after layer, with S_0 computed here from the equation."""
    x, v_first, below, out = net.blocks[0].ln0(net.emb(prompt)), None, None, []
    cfg = fs.cfg
    for l, block in enumerate(net.blocks):
        state = net.zero_state(len(prompt))[l]
        S0 = torch.zeros(len(prompt), H, N, N)
        if l >= cfg.layer_start:
            for b in range(len(prompt)):
                for h in range(H):
                    S = below[b, h] / below[b, h].square().mean().sqrt() if cfg.norm else below[b, h]
                    logit = fs.alpha[l - cfg.layer_start, h if cfg.gate == "head" else 0]
                    if cfg.input_gate:
                        u, beta = fs.u[l - cfg.layer_start], fs.beta[l - cfg.layer_start, 0]
                        logit = logit + (x[b, -1] * u).sum() / math.sqrt(C) + beta
                    p = (l - cfg.layer_start) / (L - 1 - cfg.layer_start) if L - 1 > cfg.layer_start else 1
                    m = {
                        "none": 1,
                        "linear": cfg.m_min + (cfg.m_max - cfg.m_min) * p,
                        "cos": cfg.m_min + (cfg.m_max - cfg.m_min) * (1 - math.cos(math.pi * p)) / 2,
                    }[cfg.schedule]
                    S = cfg.seed_scale * m * torch.sigmoid(logit) * S
                    S0[b, h] = S.clip(-cfg.clip, cfg.clip) if cfg.clip else S
        x, layer, v_first = block(x, state, S0, v_first, None, torch.float32)
        below = layer.S
        out.append(below)
    return out


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(gate="head", layer_start=2),
        dict(input_gate=True, norm=False),
        dict(gate="head", input_gate=True, schedule="cos", m_min=0.4, m_max=1.0, clip=0.3, seed_scale=1.7),
        dict(schedule="linear", m_min=0.25, layer_start=3),
    ],
)
def test_the_equation(net, options):
    fs, prompt = seed_for(net, **options), tokens(2, 9)
    with torch.no_grad():
        _, state = net(prompt, seed=fs)
        want = seeded_states(net, fs, prompt)
        _, plain = net(prompt)
    for got, expected in zip(state, want, strict=True):
        torch.testing.assert_close(got.S, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(state[-1].S, plain[-1].S, atol=1e-3), "the seed had no effect: the test shows nothing"


def test_a_closed_gate_is_plain_rwkv7_bit_for_bit(net):
    prompt = tokens(2, 9)
    with torch.no_grad():
        h, state = net(prompt)
        h0, state0 = net(prompt, seed=seed_for(net, seed_scale=0.0))
    assert torch.equal(h, h0)
    assert all(torch.equal(a.S, b.S) for a, b in zip(state, state0, strict=True))


def test_ragged_rows_are_seeded_at_their_own_prompt_end(net):
    fs = seed_for(net, gate="head", input_gate=True)
    rows = [tokens(1, n, n)[0].tolist() for n in (3, 11, 7)]
    batch, lengths = left_pad(rows)
    with torch.no_grad():
        h, state = net(batch, lengths=lengths, seed=fs)
        for i, row in enumerate(rows):
            h1, state1 = net(torch.tensor([row]), seed=fs)
            torch.testing.assert_close(h[i, -len(row) :], h1[0], rtol=5e-5, atol=5e-5)
            for got, want in zip(state, state1, strict=True):
                torch.testing.assert_close(got.S[i], want.S[0], rtol=5e-5, atol=5e-5)


def test_the_end_of_the_prompt_reaches_its_beginning_only_through_the_seed(net):
    a = tokens(1, 10)
    b = a.clone()
    b[0, -1] = (b[0, -1] + 1) % 50
    fs = seed_for(net)
    with torch.no_grad():
        assert torch.equal(net(a)[0][0, :9], net(b)[0][0, :9])
        assert (net(a, seed=fs)[0][0, :9] - net(b, seed=fs)[0][0, :9]).abs().max() > 1e-4


def test_an_answer_never_changes_prompt_states_and_decoding_equals_teacher_forcing(net):
    fs, prompt, answer = seed_for(net), tokens(2, 9), tokens(2, 5, seed=3)
    with torch.no_grad():
        h, state = net(prompt, seed=fs)
        forced, _ = net(answer, state)
        logits, decoding = net.prefill(prompt, seed=fs)
        assert torch.equal(logits, net.head(h[:, -1]))
        for t in range(5):
            logits, decoding = net.step(answer[:, t], decoding)
            torch.testing.assert_close(logits, net.head(forced[:, t]), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="carried state"):
        net(answer, state, seed=fs)


def test_gradient_crosses_the_seed_unless_detached(net):
    prompt, grads = tokens(2, 9), {}
    for detach in (False, True):
        fs = seed_for(net, detach=detach, layer_start=3)
        S = torch.randn(2, H, N, N, requires_grad=True)
        x_last = torch.randn(2, C)
        fs(3, S, x_last).square().sum().backward() if not detach else fs(3, S, x_last).sum().backward()
        grads[detach] = S.grad
        assert fs.alpha.grad.abs().sum() > 0
    assert grads[True] is None
    assert grads[False] is not None
    net.zero_grad()
    fs = seed_for(net, gate="head", input_gate=True)
    h, _ = net(prompt, seed=fs)
    (h * torch.randn(h.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for name, p in fs.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_zero_length_prompts_give_zero_seeds_and_finite_gradients(net):
    fs = seed_for(net)
    S = torch.zeros(1, H, N, N, requires_grad=True)
    seed = fs(1, S, torch.zeros(1, C))
    seed.sum().backward()
    assert not seed.any()
    assert S.grad.isfinite().all()
    h, state = net(torch.zeros(2, 0, dtype=torch.long), seed=fs)
    assert h.shape == (2, 0, C)
    assert not state[-1].S.any()


def test_depth_schedule_has_the_published_values():
    big = random_model(n_layer=12, n_embd=64)
    table = {
        (6, "cos"): [0.400, 0.457, 0.607, 0.793, 0.943, 1.0],
        (8, "cos"): [0.40, 0.55, 0.85, 1.0],
        (10, "cos"): [0.4, 1.0],
        (6, "linear"): [0.40, 0.52, 0.64, 0.76, 0.88, 1.0],
        (11, "cos"): [1.0],
        (6, "none"): [1.0] * 6,
    }
    for (start, schedule), want in table.items():
        fs = FutureSeed(SeedConfig(layer_start=start, schedule=schedule, m_min=0.4, m_max=1.0), big.cfg)
        assert [round(fs.depth_scale(l), 3) for l in range(start, 12)] == pytest.approx(want, abs=5e-4)


def test_controls_replace_the_source_and_keep_its_size(net):
    fs, S, x = seed_for(net, norm=False), torch.randn(3, H, N, N), torch.zeros(3, C)
    own = fs(1, S, x)
    fs.control = "other row"
    torch.testing.assert_close(fs(1, S, x), own.roll(1, 0))
    with pytest.raises(UserError, match="2 rows"):
        fs(1, S[:1], x[:1])
    fs.control = "random"
    noise = fs(1, S, x)
    torch.testing.assert_close(noise.norm(dim=(-2, -1)), own.norm(dim=(-2, -1)))
    assert (noise * own).sum().abs() < 0.2 * own.square().sum()


def test_bad_configurations(net):
    for start in (0, L, L + 3):
        with pytest.raises(UserError, match="seeds no layer"):
            FutureSeed(SeedConfig(layer_start=start), net.cfg)
    with pytest.raises(UserError, match="use scalar or head"):
        FutureSeed(SeedConfig(gate="heads"), net.cfg)
    with pytest.raises(UserError, match="use none or linear or cos"):
        FutureSeed(SeedConfig(schedule="cosine"), net.cfg)


def test_seed_file(net, tmp_path):
    fs = seed_for(net, gate="head", input_gate=True, schedule="cos", m_min=0.4)
    fs.save(tmp_path / "seed.pt", tokenizer="bytes")
    again = FutureSeed.load(tmp_path / "seed.pt", net.cfg)
    assert again.cfg == fs.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fs.parameters(), strict=True))
    assert torch.load(tmp_path / "seed.pt", weights_only=True)["tokenizer"] == "bytes"
    with pytest.raises(UserError, match=r"seed\.pt does not fit"):
        FutureSeed.load(tmp_path / "seed.pt", random_model(n_layer=3).cfg)
    net.save(tmp_path / "m.pth")
    assert not any("seed" in k or "alpha" in k for k in torch.load(tmp_path / "m.pth", weights_only=True))
