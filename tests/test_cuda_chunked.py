"""The chunked CUDA kernels, their own source run on the CPU: results and all gradients against the fp64 loop.

Tolerances: norm of a tensor's error relative to its norm. Rounding exact results to bf16 is an error of 1.7e-3, torch's
chunked form with bf16 matrix products (autocast) has 2e-3 to 1.3e-2, these kernels had 2e-3 to 5.5e-3 when written.
"""

import pytest
import torch

from cuda_host import launcher as host_launcher
from wkv_cuda import chunked
from wkv_cuda.__main__ import operands
from wkv_cuda.__main__ import run as differentiate
from wkv_cuda.cuda import launcher as gpu_launcher
from wkv_cuda.reference import wkv7_chunked, wkv7_loop

NAMES = ("y", "sT", "dr", "dw", "dk", "dv", "da", "db", "ds0")
TOLERANCE = 7e-3


def bf16_operands(B, T, H, N=64, w=None, padded=0):
    """r w k v a b, dy (bf16), s0, dsT; the last `padded` steps are identity steps."""
    *ops, s0 = operands(B, T, H, N, torch.bfloat16)
    g = torch.Generator().manual_seed(1)
    dy, dsT = torch.randn(B, T, H, N, generator=g).bfloat16(), torch.randn(B, H, N, N, generator=g)
    if w is not None:
        ops[1] = torch.full_like(ops[1], w)
    if padded:
        for x, value in zip((*ops[1:], dy), (-torch.inf, 0, 0, 0, 0, 0), strict=True):
            x[:, T - padded :] = value
    return ops, dy, s0, dsT


def run(launch, device, ops, dy, s0, dsT, segments=None):
    """-> y, sT and the gradients of r w k v a b s0."""
    *ops, dy, s0, dsT = (None if x is None else x.to(device) for x in (*ops, dy, s0, dsT))
    y, sT, states = chunked.forward(launch, *ops, s0, True, segments)
    return [x.cpu() for x in (y, sT, *chunked.backward(launch, *ops, states, dy, dsT, segments))]


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.cuda)])
def kernels(request):
    """run() on the CPU, and on a GPU where there is one. Results that a kernel forgets to write are NaN."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")

    def f(ops, *rest, descending=False):
        defines = chunked.defines(ops[0].shape[-1])
        if request.param == "gpu":
            return run(gpu_launcher(chunked.SOURCE, defines), "cuda", ops, *rest)
        return run(host_launcher(chunked.SOURCE, defines, descending), "cpu", ops, *rest)

    torch.use_deterministic_algorithms(True)  # fills memory that torch.empty gives out
    yield f
    torch.use_deterministic_algorithms(False)


def exact(ops, dy, s0, dsT, f=wkv7_loop, dtype=torch.float64):
    B, _, H, N = dy.shape
    zeros = torch.zeros(B, H, N, N, device=dy.device)
    inputs = [x.to(dtype) for x in (*ops, zeros if s0 is None else s0)]
    return differentiate(f, inputs, dy.to(dtype), (zeros if dsT is None else dsT).to(dtype))


def errors(got, want):
    got, want = [x.double() for x in got], [x.double() for x in want]
    return {n: ((x - e).norm() / e.norm()).item() for n, x, e in zip(NAMES, got, want, strict=True)}


def assert_close(got, want, tolerance=TOLERANCE):
    for x, e in zip(got, want, strict=True):
        assert x.shape == e.shape
        assert x.isfinite().all()
    found = errors(got, want)
    assert max(found.values()) < tolerance, found


@pytest.mark.parametrize(
    ("shape", "has_s0", "has_dsT"),
    [
        ((2, 1, 1, 64), True, True),
        ((1, 31, 2, 64), False, False),
        ((1, 32, 1, 64), True, False),
        ((1, 33, 1, 64), False, True),
        ((2, 70, 2, 64), True, True),
        ((2, 70, 2, 32), True, True),
    ],
)
def test_against_fp64(kernels, shape, has_s0, has_dsT):
    ops, dy, s0, dsT = bf16_operands(*shape)
    case = ops, dy, s0 if has_s0 else None, dsT if has_dsT else None
    got = kernels(*case)
    assert [x.dtype for x in got] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * 6, torch.float32]
    assert_close(got, exact(*case))


@pytest.mark.parametrize("w", [-0.5, -8.0, -torch.inf, 0.9])
def test_decays_from_none_to_the_strongest(kernels, w):
    """-0.5 is the lower bound of RWKV-7's decays, 0.545; exp(0.9) = 2.46 is almost the strongest that is exact."""
    case = bf16_operands(1, 70, 1, w=w)
    got, want = kernels(*case), exact(*case)
    if w == -torch.inf:
        assert not got.pop(3).any()  # dw: no decay, so nothing to change
        want[3].fill_(1)
        got.insert(3, want[3])
    assert_close(got, want)


def test_as_exact_as_torch_in_bf16(kernels):
    def autocast(*inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return wkv7_chunked(*inputs, C=chunked.CHUNK)

    case = bf16_operands(1, 100, 2)
    want = exact(*case)
    ours, peer = errors(kernels(*case), want), errors(exact(*case, autocast, torch.bfloat16), want)
    assert sum(ours.values()) < sum(peer.values())
    assert all(ours[n] < 1.5 * peer[n] for n in NAMES), (ours, peer)


def test_stronger_decays_are_taken_as_the_strongest(kernels):
    ops, dy, s0, dsT = bf16_operands(1, 40, 1, w=1.0)
    y, sT, dr, dw, *_ = kernels(ops, dy, s0, dsT)
    for w in (3.0, torch.inf):
        ops[1].fill_(w)
        other = kernels(ops, dy, s0, dsT)
        for x, e in zip(other, (y, sT, dr, dw), strict=False):
            assert torch.equal(x, e), w
        assert not other[3].any()


def test_nan_is_not_hidden(kernels):
    ops, dy, s0, dsT = bf16_operands(1, 40, 1)
    ops[1][0, 35, 0, 5] = torch.nan
    y, sT, *_ = kernels(ops, dy, s0, dsT)
    assert sT.isnan().any()
    assert y[:, :32].isfinite().all()


def test_padding_leaves_no_trace(kernels):
    """A row padded at its end by identity steps has the same bits; at its start, where chunks then differ, the same."""
    ops, dy, s0, dsT = bf16_operands(2, 100, 1, padded=60)
    long = kernels(ops, dy, s0, dsT)
    short = kernels([x[:, :40] for x in ops], dy[:, :40], s0, dsT)
    for name, x, e in zip(NAMES, long, short, strict=True):
        x = x[:, :40] if x.shape == dy.shape else x
        assert torch.equal(x, e), name
    assert not long[3][:, 40:].any()
    left = [x.roll(60, 1) for x in ops]
    got = kernels(left, dy.roll(60, 1), s0, dsT)
    assert_close([x[:, 60:] if x.shape == dy.shape else x for x in got], short, 2 * TOLERANCE)


@pytest.mark.parametrize("w", [None, -8.0])
def test_segments_of_time(kernels, w):
    """With weak decay as well, where an early segment's state reaches the end."""
    case = bf16_operands(1, 32 * 5 + 7, 1, w=w)
    whole, want = kernels(*case, 1), exact(*case)
    for segments in (2, 3, 6):
        got = kernels(*case, segments)
        assert_close(got, want, TOLERANCE)
        assert_close(got, whole, 5e-3)


def test_the_same_bits_in_any_order_of_threads(kernels):
    case = bf16_operands(1, 70, 2)
    for segments in (1, 3):
        first = kernels(*case, segments)
        for descending in (False, True):
            again = kernels(*case, segments, descending=descending)
            assert all(torch.equal(x, e) for x, e in zip(again, first, strict=True))


def test_strided_and_unaligned_operands(kernels):
    ops, dy, s0, dsT = bf16_operands(1, 33, 2)
    want = kernels(ops, dy, s0, dsT)
    moved = [torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in (*ops, dy)]
    assert moved[0].data_ptr() % 16
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in moved]
    for *some, d in (moved, strided):
        got = kernels(some, d, s0.mT.contiguous().mT, dsT)
        assert all(torch.equal(x, e) for x, e in zip(got, want, strict=True))


def test_forward_alone_and_in_pieces():
    """Cut at a multiple of the chunk: the same bits, since states pass in fp32."""
    ops, _, s0, _ = bf16_operands(1, 70, 2)
    launch = host_launcher(chunked.SOURCE, chunked.defines(64))
    y, sT, states = chunked.forward(launch, *ops, s0, False)
    assert states is None
    first, s1, _ = chunked.forward(launch, *(x[:, :32] for x in ops), s0, False)
    second, s2, _ = chunked.forward(launch, *(x[:, 32:] for x in ops), s1, False)
    assert torch.equal(torch.cat([first, second], 1), y)
    assert torch.equal(s2, sT)


@pytest.mark.cuda
def test_on_a_gpu_long_and_in_a_graph():
    """As many steps as make segments of time, recorded in a CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    ops, *rest = bf16_operands(1, 2000, 2)
    ops, (dy, s0, dsT) = [x.cuda() for x in ops], [x.cuda() for x in rest]
    launch = gpu_launcher(chunked.SOURCE, chunked.defines(64))

    def both():
        y, sT, states = chunked.forward(launch, *ops, s0, True)
        return [y, sT, *chunked.backward(launch, *ops, states, dy, dsT)]

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = both()
    ops[0].mul_(0.5)  # the graph reads its operands anew
    graph.replay()
    assert all(torch.equal(x, e) for x, e in zip(recorded, both(), strict=True))
    assert_close(recorded, exact(ops, dy, s0, dsT))


def test_segments_are_planned():
    assert chunked.plan(96, 64, 128, 132) == 1  # enough heads for the card
    assert chunked.plan(12, 64, 256, 132) == 11
    assert chunked.plan(1, 64, 3, 132) == 1  # too short to split
    assert chunked.plan(1, 64, 10**6, 132) == chunked.MAX_SEGMENTS


def test_shared_memory_fits_every_card():
    """A block may have 99 KiB where there is least (sm_86, sm_120). Registers: tests/ptxas.py."""
    assert max(n for N in chunked.HEAD_SIZES for n in chunked.shared_bytes(N).values()) <= 99 * 1024
