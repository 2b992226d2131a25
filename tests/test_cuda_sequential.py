"""Kernel A, by its own source: on the CPU through cuda_host.h, and the same tests on a GPU (pytest -m cuda)."""

import pytest
import torch

from cuda_host import launcher as host_launcher
from wkv_cuda.__main__ import operands, run
from wkv_cuda.cuda import launcher as gpu_launcher
from wkv_cuda.reference import wkv7_loop
from wkv_cuda.sequential import CHUNK, SIZES, SOURCE, backward, defines, forward

NAMES = ("y", "sT", "dr", "dw", "dk", "dv", "da", "db", "ds0")
FP32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {FP32: 1e-6, BF16: 1e-2}  # relative to the largest value; bf16 results carry 8 bits


class Kernels:
    """The two directions on one kind of machine, from and to tensors on the CPU."""

    def __init__(self, launcher, device):
        self.launcher, self.device = launcher, device

    def run(self, inputs, dy=None, dsT=None, save=True):
        """y, sT, and with dy all gradients."""
        to = lambda x: None if x is None else x.to(self.device)
        *ops, s0, dy, dsT = map(to, (*inputs, dy, dsT))
        launch = self.launcher(SOURCE, defines(ops[0].shape[-1], ops[0].dtype))
        y, sT, checkpoints, sa = forward(launch, *ops, s0, save)
        assert save or (checkpoints is None and sa is None)
        grads = [] if dy is None else backward(launch, *ops, checkpoints, sa, dy, dsT)
        return [x.cpu() for x in (y, sT, *grads)]


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.cuda)])
def kernels(request):
    """On the CPU, and on a GPU where there is one. Results that a kernel forgets to write are NaN."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    torch.use_deterministic_algorithms(True)  # fills memory that torch.empty gives out
    yield Kernels(gpu_launcher, "cuda") if request.param == "gpu" else Kernels(host_launcher, "cpu")
    torch.use_deterministic_algorithms(False)


def cotangents(r):
    B, T, H, N = r.shape
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, T, H, N, generator=g).to(r.dtype), torch.randn(B, H, N, N, generator=g)


def assert_exact(kernels, inputs, tolerance=None):
    dy, dsT = cotangents(inputs[0])
    got = kernels.run(inputs, dy, dsT)
    exact = run(wkv7_loop, [x.double() for x in inputs], dy.double(), dsT.double())
    for name, x, e in zip(NAMES, got, exact, strict=True):
        assert x.shape == e.shape, name
        assert x.dtype == (FP32 if name in ("sT", "ds0") else inputs[0].dtype), name
        assert x.isfinite().all(), name
        error = (x - e).abs().max() / e.abs().max().clamp(min=1e-30)
        assert error < (tolerance or TOLERANCE[inputs[0].dtype]), f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    "shape",
    [(2, 21, 3, 16), (1, 37, 2, 32), (2, 35, 2, 64), (1, 19, 2, 128), (3, 1, 2, 64), (1, 1, 1, 128), (1, 16, 1, 64)],
)
def test_against_fp64(kernels, shape, dtype):
    assert_exact(kernels, operands(*shape, dtype))


@pytest.mark.parametrize("w", [5.0, 0.5, -0.5, -20.0])
def test_decays_from_forgetting_all_to_nothing(kernels, w):
    r, _, k, v, a, b, s0 = operands(1, 35, 1, 64)
    assert_exact(kernels, [r, torch.full_like(r, w), k, v, a, b, s0], tolerance=3e-6)


def test_a_decay_beyond_fp32_has_no_gradient(kernels):
    r, w, k, v, a, b, s0 = operands(1, 5, 1, 16)
    w[:, 2] = 95.0  # exp(95) overflows
    w[:, 3] = -torch.inf
    assert_exact(kernels, [r, w, k, v, a, b, s0])


@pytest.mark.parametrize("N", SIZES)
def test_identity_steps_change_nothing(kernels, N):
    inputs = operands(1, 20, 2, N)
    dy, dsT = cotangents(inputs[0])
    padded = []
    for i, x in enumerate(inputs[:6]):
        fill = -torch.inf if i == 1 else 0.0
        padded.append(torch.cat([x, torch.full_like(x[:, :13], fill)], dim=1))
    pad = torch.cat([dy, torch.zeros_like(dy[:, :13])], dim=1)
    short, long = kernels.run(inputs, dy, dsT), kernels.run([*padded, inputs[6]], pad, dsT)
    for name, x, y in zip(NAMES, short, long, strict=True):
        assert torch.equal(x, y if name in ("sT", "ds0") else y[:, :20]), name
        assert y.isfinite().all(), name


def test_no_start_state_and_no_gradient_of_the_end_state_are_zeros(kernels):
    *ops, s0 = operands(2, 18, 2, 32)
    dy, dsT = cotangents(ops[0])
    zeros = kernels.run([*ops, torch.zeros_like(s0)], dy, torch.zeros_like(dsT))
    for x, y in zip(kernels.run([*ops, None], dy, None), zeros, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("T", [1, 21])
def test_forward_alone(kernels, T):
    inputs = operands(2, T, 2, 64)
    dy, dsT = cotangents(inputs[0])
    for x, z in zip(kernels.run(inputs, save=False), kernels.run(inputs, dy, dsT), strict=False):
        assert torch.equal(x, z)


def test_a_sequence_in_pieces_is_the_sequence(kernels):
    *ops, s0 = operands(1, 40, 2, 64)
    y, sT = kernels.run([*ops, s0])
    pieces, state = [], s0
    for part in ([0, 13], [13, 14], [14, 40]):
        piece, state = kernels.run([*(x[:, slice(*part)] for x in ops), state])
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, dim=1), y)
    assert torch.equal(state, sT)


def test_views_and_odd_addresses(kernels):
    inputs = operands(2, 9, 2, 32)
    dy, dsT = cotangents(inputs[0])
    odd = lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:6]]
    assert not strided[0].is_contiguous()
    want = kernels.run(inputs, dy, dsT)
    for x, y in zip(kernels.run([*map(odd, strided), odd(inputs[6])], odd(dy), odd(dsT)), want, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("N", SIZES)
def test_results_do_not_depend_on_the_order_of_threads(N):
    inputs = operands(1, CHUNK + 3, 2, N)
    results = []
    for descending in (False, False, True):
        launch = host_launcher(SOURCE, defines(N, FP32), descending=descending)
        y, sT, checkpoints, sa = forward(launch, *inputs, True)
        results.append([y, sT, *backward(launch, *inputs[:6], checkpoints, sa, *cotangents(y))])
    for again in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(again, results[0], strict=True))


def test_operands_of_more_than_2_to_31_elements(tmp_path):
    """The first of 2^26 heads, whose steps are 2^30 elements apart, from files that are holes but for those rows."""
    T, H, N = 3, 1 << 26, 16
    small = operands(1, T, 1, N, BF16)
    dy, dsT = cotangents(small[0])

    def spread(i, x=None):
        big = torch.from_file(str(tmp_path / f"{i}"), shared=True, size=T * H * N, dtype=BF16).view(1, T, H, N)
        if x is not None:
            big[:, :, :1] = x
        return big

    ops = [spread(i, x) for i, x in enumerate([*small[:6], dy])]
    grads, y = [spread(10 + i) for i in range(6)], spread(20)
    launch, state = host_launcher(SOURCE, defines(N, BF16)), torch.empty(N, N)
    saved = torch.empty(N, N), torch.empty(T, N)

    def one_head(name, grid, block, shared_bytes, args):
        launch(name, 1, block, shared_bytes, args)

    want_y, want_sT, checkpoints, sa = forward(launch, *small, True)
    want = backward(launch, *small[:6], checkpoints, sa, dy, dsT)
    one_head("wkv7_forward", 1, 64, 4096 * 4, [*ops[:6], small[6], y, state, *saved, T, H])
    assert torch.equal(y[:, :, :1], want_y)
    assert torch.equal(state, want_sT[0, 0])
    args = [*ops[:6], *saved, ops[6], dsT, *grads, state, None, T * H * N, T, H]
    one_head("wkv7_backward", 1, 64, 16384 * 4, args)
    assert all(torch.equal(x[:, :, :1], e) for x, e in zip(grads, want, strict=False))
    assert torch.equal(state, want[-1][0, 0])
