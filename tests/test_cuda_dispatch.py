"""wkv7() on a CUDA device, from the choice of a kernel to the gradients, with the kernels run on the host instead."""

import pytest
import torch

import cuda_host
import wkv_cuda
from common.errors import UserError
from wkv_cuda import chunked, gpu, sequential
from wkv_cuda.__main__ import operands, run
from wkv_cuda.build import BuildError
from wkv_cuda.reference import wkv7_loop


@pytest.fixture
def on_host(monkeypatch):
    """CPU tensors take the way of CUDA tensors; -> the list of launched kernels."""
    launched = []

    def launch_for(dtype, N, chunks):
        kernel = chunked if chunks else sequential
        launch = cuda_host.launcher(kernel.SOURCE, chunked.defines(N) if chunks else sequential.defines(N, dtype))
        return lambda name, *args: (launched.append(name), launch(name, *args))

    monkeypatch.setattr(gpu, "launch_for", launch_for)
    monkeypatch.setattr(gpu, "prepare", lambda: "on the host")
    monkeypatch.setitem(wkv_cuda.NATIVE, "cpu", "cuda")
    monkeypatch.delenv("WKV_BACKEND", raising=False)
    wkv_cuda._chosen.cache_clear()
    yield launched
    wkv_cuda._chosen.cache_clear()


CASES = [
    (5, torch.float32, "wkv7_forward"),
    (5, torch.bfloat16, "wkv7_forward"),
    (70, torch.float32, "wkv7_forward"),
    (70, torch.bfloat16, "prepare"),
]


@pytest.mark.parametrize(("T", "dtype", "kernel"), CASES)
def test_results_and_gradients(on_host, T, dtype, kernel):
    inputs = operands(1, T, 2, 32, dtype)
    dy, dsT = torch.randn(1, T, 2, 32).to(dtype), torch.randn(1, 2, 32, 32)
    exact = run(wkv7_loop, [x.double() for x in inputs], dy.double(), dsT.double())
    for got, want in zip(run(wkv_cuda.wkv7, inputs, dy, dsT), exact, strict=True):
        assert (got - want).abs().max() < (2e-6 if dtype == torch.float32 else 2e-2) * want.abs().max()
    assert on_host[0] == kernel
    assert wkv_cuda.describe() == "cuda (on the host)"


def test_without_gradients_nothing_is_kept(on_host):
    inputs = operands(1, 70, 1, 32, torch.bfloat16)
    with torch.no_grad():
        y, sT = wkv_cuda.wkv7(*inputs)
    want = wkv7_loop(*(x.double() for x in inputs))
    assert (y - want[0]).abs().max() < 2e-2 * want[0].abs().max()
    assert (sT - want[1]).abs().max() < 2e-2 * want[1].abs().max()
    assert [t.numel() for t in gpu.saved(inputs[0], False)] == [0, 0]


@pytest.mark.parametrize(("T", "dtype"), [(70, torch.bfloat16), (33, torch.float32)])
def test_what_is_kept_has_the_promised_shape(on_host, T, dtype):
    inputs = operands(2, T, 1, 32, dtype)
    for kept, promised in zip(gpu.forward(*inputs, True)[2:], gpu.saved(inputs[0], True), strict=True):
        assert (kept.shape, kept.dtype) == (promised.shape, promised.dtype)


def test_sizes_without_a_kernel_take_the_torch_form(on_host):
    inputs = operands(1, 4, 1, 20)
    got, want = wkv_cuda.wkv7(*inputs), wkv7_loop(*inputs)
    assert torch.allclose(got[0], want[0], atol=1e-5)
    assert on_host == []


def test_a_card_that_cannot_be_used(on_host, monkeypatch, capsys):
    def fail():
        raise BuildError("loading the driver: none\nmore")

    monkeypatch.setattr(gpu, "prepare", fail)
    assert wkv_cuda.backend() == "torch"
    assert "loading the driver: none ..." in capsys.readouterr().err
    wkv_cuda._chosen.cache_clear()
    monkeypatch.setenv("WKV_BACKEND", "cuda")
    with pytest.raises(UserError, match="WKV_BACKEND=cuda, but it can't be used"):
        wkv_cuda.backend()
