"""The recurrence that decays towards a matrix, against its definition step by step in fp64, with all gradients."""

import pytest
import torch

import wkv_cuda
from conftest import random_model
from model import FutureSeed, SeedConfig
from wkv_cuda.attractor import Attracted, wkv7_from


def operands(B, T, H, N, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    r, k, v = (draw(B, T, H, N) / N**0.5 for _ in range(3))
    w = -torch.nn.functional.softplus(draw(B, T, H, N)) - 0.5
    kk = torch.nn.functional.normalize(draw(B, T, H, N), dim=-1)
    a, b = -kk, kk * torch.sigmoid(draw(B, T, H, N))
    S, A = draw(B, H, N, N), draw(B, H, N, N)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(dtype).requires_grad_() for t in (r, w, k, v, a, b)], [t.to(state).requires_grad_() for t in (S, A)]


def by_definition(r, w, k, v, a, b, S, A):
    """After the usual update A (.) (1 - d) is added: the published kernel `python` (rwkv_diff_future_seed.py)."""
    ys = []
    for t in range(r.shape[1]):
        d, outer = torch.exp(-torch.exp(w[:, t]))[..., None, :], lambda x, z: x[..., :, None] * z[..., None, :]
        Sa = (S @ a[:, t, ..., None])[..., 0]
        S = S * d + outer(Sa, b[:, t]) + outer(v[:, t], k[:, t]) + A * (1 - d)
        ys.append((S @ r[:, t, ..., None])[..., 0])
    return torch.stack(ys, 1) if ys else r.new_zeros(r.shape), S


@pytest.mark.parametrize("T", [1, 13, 40])
@pytest.mark.parametrize("backend", ["fp64", "cpp", "torch", "reference"])
def test_every_backend_and_all_gradients_against_the_definition(monkeypatch, backend, T):
    dtype = torch.float64 if backend == "fp64" else torch.float32
    if backend == "cpp" and wkv_cuda.backend() != "cpp":
        pytest.skip(f"no C++ here: {wkv_cuda.describe()}")
    if backend != "fp64":
        monkeypatch.setattr(wkv_cuda, "backend", lambda device="cpu": backend)
    ours, (S, A) = operands(2, T, 3, 16, dtype)
    exact = [t.detach().double().requires_grad_() for t in (*ours, S, A)]
    y, ST = wkv7_from(*ours, Attracted(S, A))
    want_y, want_S = by_definition(*exact)
    weights = torch.randn(want_y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (y * weights.to(dtype)).sum().add(ST.square().sum()).backward()
    (want_y * weights).sum().add(want_S.square().sum()).backward()
    tolerance = 1e-10 if backend == "fp64" else 2e-5
    pairs = [(y, want_y), (ST, want_S)] + [(t.grad, e.grad) for t, e in zip((*ours, S, A), exact, strict=True)]
    for got, want in pairs:
        assert got.shape == want.shape
        assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max().item())


def test_no_step_leaves_the_start_state():
    ours, (S, A) = operands(2, 0, 3, 16, torch.float32)
    y, ST = wkv7_from(*ours, Attracted(S, A))
    assert y.shape == (2, 0, 3, 16)
    torch.testing.assert_close(ST, S)


def test_nothing_to_be_attracted_to_is_the_ordinary_recurrence():
    ours, (S, A) = operands(1, 9, 2, 16, torch.float64)
    for got, want in zip(wkv7_from(*ours, Attracted(S, A * 0)), wkv7_from(*ours, S), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_model_starts_from_the_ungated_seed_and_decays_towards_the_gated_one():
    """Padding is invisible here too, and a gate of almost zero leaves the start alone."""
    net = random_model()
    cfg = dict(form="attractor", alpha_init=0.5, norm=False, seed_scale=0.7)
    fs = FutureSeed(SeedConfig(**cfg), net.cfg)
    S, x = torch.randn(2, 2, 64, 64), torch.randn(2, 128)
    start = fs(1, S, x)
    torch.testing.assert_close(start.S, 0.7 * S)
    torch.testing.assert_close(start.A, 0.7 * torch.sigmoid(torch.tensor(0.5)) * S)
    tokens = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone, _ = net(tokens[1:, 4:], seed=fs)
        together, _ = net(tokens, lengths=[11, 7], seed=fs)
        torch.testing.assert_close(together[1:, 4:], alone, rtol=1e-4, atol=1e-4)
        closed = FutureSeed(SeedConfig(**cfg | dict(alpha_init=-60.0)), net.cfg)
        plain = FutureSeed(SeedConfig(alpha_init=60.0, norm=False, seed_scale=0.7), net.cfg)
        torch.testing.assert_close(net(tokens, seed=closed)[0], net(tokens, seed=plain)[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(net(tokens, seed=closed)[0], net(tokens, seed=fs)[0], atol=1e-3)
