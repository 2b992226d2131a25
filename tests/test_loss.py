"""The fused head and cross-entropy, the choice of a dtype, and products at full speed."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import common.loss
from common import machine
from common.loss import head_loss
from common.machine import faster_dtype, keep_freed_memory, multiply_at_full_width


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_loss_is_cross_entropy(rows_at_a_time, dtype, monkeypatch):
    V, C, R = 50, 16, 11
    monkeypatch.setattr(common.loss, "LOGITS", V * rows_at_a_time)
    g = torch.Generator().manual_seed(0)
    h, weight = torch.randn(R, C, generator=g).to(dtype), torch.randn(V, C, generator=g).to(dtype).float()
    targets = torch.randint(V, (R,), generator=g)
    x, W = h.double().requires_grad_(), weight.double().requires_grad_()
    want = F.cross_entropy(x @ W.T, targets, reduction="sum")
    (want / 7).backward()
    h.requires_grad_()
    weight.requires_grad_()
    loss, right = head_loss(h, weight, targets)
    (loss / 7).backward()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert loss.dtype == torch.float32
    assert abs(loss.item() - want.item()) < tolerance * want.item()
    assert right.item() == ((x @ W.T).argmax(-1) == targets).sum().item()
    for got, exact in ((h.grad, x.grad), (weight.grad, W.grad)):
        assert (got - exact).abs().max() < tolerance * exact.abs().max()
    assert weight.grad.dtype == torch.float32
    assert h.grad.dtype == dtype


def test_head_loss_of_frozen_weights_and_large_logits():
    h, weight = torch.full((2, 4), 100.0), torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    h.requires_grad_()
    loss, right = head_loss(h, weight, torch.tensor([0, 3]))
    loss.backward()
    assert loss.item() == 300.0  # 400 - 100, and 0
    assert right.item() == 1
    assert weight.grad is None
    assert h.grad[0].tolist() == pytest.approx([-1.0, 0.0, 0.0, 4.0])
    with torch.no_grad():
        assert head_loss(h, weight, torch.tensor([0, 3]))[0].item() == 300.0


def test_without_a_gradient_none_is_made():
    h, weight = torch.randn(5, 16), torch.randn(50, 16, requires_grad=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head_loss(h, weight, torch.zeros(5, dtype=torch.long))
    assert counter.get_total_flops() == 2 * 5 * 16 * 50  # of the logits alone


def test_the_choice_of_a_dtype_is_measured_and_said(capsys, monkeypatch):
    assert faster_dtype(torch.device("cpu")) in ("float32", "bfloat16")
    assert "times as fast" in capsys.readouterr().out
    clock = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # everything takes the same time
    assert faster_dtype(torch.device("cpu")) == "float32"


def test_keeping_freed_memory_changes_no_result():
    keep_freed_memory()
    x = torch.arange(10**6, dtype=torch.float32)
    for _ in range(3):
        assert (x * 2).sum().item() == pytest.approx(999999.0 * 1e6, rel=1e-6)


@pytest.fixture
def precision():
    """The setting that is changed, which is put back."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


@pytest.mark.parametrize("processor", ["AMD EPYC", "another"])
def test_products_stay_those_of_float32(processor, monkeypatch, precision):
    monkeypatch.setattr(machine, "processor_name", lambda: processor)
    before = precision.fp32_precision
    multiply_at_full_width()
    assert processor.startswith("AMD") or precision.fp32_precision == before
    for M, K, N in ((1, 128, 128), (33, 20, 17), (1536, 128, 512), (96, 768, 3072)):
        a, b, g = torch.randn(M, K), torch.randn(N, K), torch.randn(M, N)
        for x, y in ((a, b.T), (g, b), (a.T, g)):
            error = (x @ y - x.double() @ y.double()).abs() / (x.abs().double() @ y.abs().double())
            assert error.max() < 2e-6  # bf16 has 4e-3


def test_products_that_would_be_rounded_to_bf16_are_left_as_they_were(monkeypatch, precision):
    monkeypatch.setattr(machine, "processor_name", lambda: "AMD with matrix units")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *a: full(*a).bfloat16().float())
    multiply_at_full_width()
    assert precision.fp32_precision == "none"
