"""The fused pieces on the CPU against the formulas in model.py, evaluated and differentiated in fp64."""

import pytest
import torch

import model
import wkv_cuda
from common.errors import UserError
from wkv_cuda import glue

pytestmark = pytest.mark.skipif(wkv_cuda.backend() != "cpp", reason=f"no C++ here: {wkv_cuda.describe()}")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # relative to the largest value of each result


def arguments(piece: str, B: int, T: int, H: int, N: int, padded=False):
    """Random arguments of a piece: activations first, then parameters and what is no tensor."""
    g, C = torch.Generator().manual_seed(0), H * N
    x = lambda: torch.randn(B, T, C, generator=g)
    p = lambda *shape: torch.randn(*(shape or (1, 1, C)), generator=g)
    pad = torch.rand(B, T, 1, generator=g) < 0.5 if padded else None
    if piece == "mix":
        return [x(), torch.randn(B, C, generator=g), *(torch.rand(1, 1, C, generator=g) for _ in range(6))]
    if piece == "operands":
        return [x(), x(), 3 * x(), x(), x(), x(), p(), p(), p(), p(), p(), H, pad]
    if piece == "operands of layer 0":
        return [x(), x(), 3 * x(), x(), None, None, p(), p(), None, p(), p(), H, pad]
    if piece == "readout":
        return [x(), x(), x(), x(), x(), p(H, N), p(C), p(C), 1e-5 * N]
    return [x()]


PIECES = {"mix": "mix", "operands": "operands", "operands of layer 0": "operands", "readout": "readout",
          "relu squared": "relu_squared"}  # fmt: skip


def run(f, args):
    """Outputs and the gradients of all floating arguments, for a fixed random gradient of each output."""
    leaves = [t.detach().clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in args]
    out = f(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    g = torch.Generator().manual_seed(1)
    douts = [torch.randn(o.shape, generator=g).to(torch.bfloat16).to(o.dtype) for o in out]
    torch.autograd.backward(out, douts)
    return [*out, *(t.grad for t in leaves if torch.is_tensor(t) and t.is_floating_point())]


def cast(args, dtype, everything=False):
    """Activations (and with `everything` also parameters) in dtype; parameters are fp32 master weights otherwise."""
    is_activation = lambda t: (
        torch.is_tensor(t) and t.is_floating_point() and (everything or t.shape[0] == args[0].shape[0])
    )
    return [t.to(dtype) if is_activation(t) else t for t in args]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 70, 3, 64), (3, 1, 1, 16), (2, 33, 2, 20), (2, 5, 1, 128)])
def test_pieces_equal_their_formulas(piece, dtype, shape):
    f = getattr(model, PIECES[piece])
    for padded in (False, True) if "operands" in piece else (False,):
        args = cast(arguments(piece, *shape, padded), dtype)
        exact = run(f.formula, cast(args, torch.float64, everything=True))
        for i, (x, e) in enumerate(zip(run(f, args), exact, strict=True)):
            assert x.shape == e.shape
            same = torch.where(e.isinf(), (x == e).double() - 1, x - e)  # the w of padding is -inf
            error = same.abs().max() / e[e.isfinite()].abs().max().clamp(min=1e-30)
            assert error < TOLERANCE[dtype], f"result {i}, padded={padded}: {error:.1e}"


def test_extreme_logits_stay_finite():
    for scale in (30.0, 200.0):
        args = arguments("operands", 1, 8, 2, 16)
        args[2], args[3], args[4] = (scale * t.sign() for t in args[2:5])
        exact = run(model.operands.formula, cast(args, torch.float64, everything=True))
        for x, e in zip(run(model.operands, args), exact, strict=True):
            assert torch.allclose(x.double(), e, rtol=1e-5, atol=1e-6)


def test_not_a_number_is_passed_on():
    for piece, name in PIECES.items():
        args = arguments(piece, 1, 4, 1, 16)
        args[0][0, 1, 3] = torch.nan
        out = getattr(model, name)(*args)
        assert any(t.isnan().any() for t in (out if isinstance(out, tuple) else (out,))), piece


@pytest.mark.parametrize("piece", PIECES)
def test_results_do_not_depend_on_the_number_of_threads(piece):
    args, before, results = arguments(piece, 2, 700, 3, 16), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(getattr(model, PIECES[piece]), args))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_views_that_are_not_contiguous():
    args = arguments("readout", 2, 6, 2, 16)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() == 3 else t for t in args[:-1]] + [args[-1]]
    for x, y in zip(run(model.readout, strided), run(model.readout, args), strict=True):
        assert torch.equal(x, y)


def test_heads_that_are_too_large():
    for piece in ("operands", "readout"):
        with pytest.raises(UserError, match="256 channels"):
            run(getattr(model, PIECES[piece]), arguments(piece, 1, 1, 1, 512))


def test_other_dtypes_take_the_formula(monkeypatch):
    monkeypatch.setattr(glue, "call", None)  # would fail
    assert model.relu_squared(torch.tensor([-1.0, 3.0], dtype=torch.float64)).tolist() == [0, 9]
