"""The shim that runs CUDA kernels on the CPU: it must notice what a GPU would not forgive."""

import pytest
import torch

from conftest import ROOT
from cuda_host import KernelError, launcher
from wkv_cuda.cuda import launcher as gpu_launcher

SOURCE = """
#include "device.cuh"

extern "C" __global__ void diverge(float* y, i64 how) {
    const bool first = threadIdx.x < 40;
    if (how == 0 && first) __syncthreads();  // not all threads
    if (how == 1) {                          // all, but not the same
        if (first) __syncthreads();
        else __syncthreads();
    }
    if (how == 2 && threadIdx.x % 32 < 8) y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
    if (how == 3) {
        if (first) __syncthreads();
        else __syncwarp();
    }
    y[threadIdx.x] = how;
}

extern "C" __global__ void product(const u16* A, const u16* B, float* C, i64 as_matrices) {
    DYNAMIC_SHARED(u16, tile);  // A, then B transposed
    const int lane = threadIdx.x, g = lane / 4, q = lane % 4 * 2;
    copy_async(tile + lane * 8, A + lane * 8);
    copy_commit();
    for (int i = lane; i < 128; i += 32) tile[256 + i % 8 * 16 + i / 8] = B[i];
    copy_wait<0>();
    __syncthreads();
    const u16* Bt = tile + 256;
    u32 a[4], b[4];
    float c[4] = {};
    if (as_matrices) {
        load_matrices(a, tile + (lane % 16) * 16 + lane / 16 * 8);
        load_matrices(b, Bt + lane % 8 * 16 + lane / 8 % 2 * 8);
    } else {
        for (int i = 0; i < 4; i++) a[i] = *(const u32*)(tile + (g + i % 2 * 8) * 16 + q + i / 2 * 8);
        for (int i = 0; i < 2; i++) b[i] = *(const u32*)(Bt + g * 16 + q + i * 8);
    }
    mma16816(c, a, {b[0], b[1]});
    for (int i = 0; i < 4; i++) C[(g + i / 2 * 8) * 8 + q + i % 2] = c[i];
}

extern "C" __global__ void transpose(const u16* x, u16* y) {  // 32 x 8 -> four 8 x 8, each transposed
    DYNAMIC_SHARED(u16, tile);
    for (int i = 0; i < 8; i++) tile[threadIdx.x * 8 + i] = x[threadIdx.x * 8 + i];
    __syncwarp();
    u32 m[4];
    load_matrices_transposed(m, tile + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) {
        y[i * 64 + threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2] = (u16)m[i];
        y[i * 64 + threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2 + 1] = (u16)(m[i] >> 16);
    }
}

extern "C" __global__ void memory(const float* x, float* y, i64 wait, i64 at) {
    DYNAMIC_SHARED(float, dynamic);
    __shared__ float fixed[4];
    copy_async(dynamic, x);
    copy_commit();
    copy_async(dynamic + 4, x + 4);
    copy_commit();
    if (wait == 1) copy_wait<1>();
    if (wait == 2) copy_wait<0>();
    if (threadIdx.x > 0) return;
    y[0] = dynamic[0], y[1] = dynamic[4], y[2] = fixed[0], y[3] = dynamic[8];
    fixed[0] = dynamic[8] = 1;
    if (at) dynamic[at] = 0;
}

extern "C" __global__ void __launch_bounds__(64) race(float* y, i64 correct) {
    __shared__ float x[64];
    x[threadIdx.x] = threadIdx.x;
    if (correct) __syncthreads();
    y[threadIdx.x] = x[63 - threadIdx.x];
}

extern "C" __global__ void shuffles(float* y) {
    const float x = threadIdx.x;
    y[threadIdx.x] = __shfl_sync(~0u, x, 5);
    y[32 + threadIdx.x] = __shfl_xor_sync(~0u, x, 3);
    y[64 + threadIdx.x] = __shfl_down_sync(~0u, x, 2, 8);
    y[96 + threadIdx.x] = __shfl_up_sync(~0u, x, 1);
    y[128 + threadIdx.x] = from_bf16(to_bf16(1 + x / 256)) + from_bf16((u16)(pack_bf16(0, x) >> 16));
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "kernels.cu"
    path.write_text(SOURCE)
    path.with_name("device.cuh").write_text((ROOT / "wkv_cuda" / "device.cuh").read_text())
    return path


@pytest.fixture
def launch(source):
    return launcher(source)


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.cuda)])
def run(request, source):
    """Launch one block of a warp on one kind of machine, with the result as the last argument but for numbers."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    device = "cuda" if request.param == "gpu" else "cpu"

    def run(name, shared_bytes, inputs, result, *numbers):
        result = result.to(device)
        launch = (gpu_launcher if device == "cuda" else launcher)(source, {})
        launch(name, 1, 32, shared_bytes, [*(x.to(device) for x in inputs), result, *numbers])
        return result.cpu()

    return run


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "24 threads ended"),
        (1, "threads wait at kernels.cu:8 and kernels.cu:9"),
        (2, "24 threads ended"),
        (3, "some threads wait for their block, others for their warp"),
    ],
)
def test_divergent_barriers_are_reported(launch, how, message):
    with pytest.raises(KernelError, match=f"diverge: divergent barrier: .*{message}"):
        launch("diverge", 2, 64, 0, [torch.zeros(64), how])


def test_after_an_error_the_next_launch_is_sound(launch):
    y = torch.zeros(64)
    with pytest.raises(KernelError):
        launch("diverge", 1, 64, 0, [y, 0])
    launch("diverge", 1, 64, 0, [y, 9])
    assert torch.equal(y, torch.full((64,), 9.0))


@pytest.mark.parametrize("as_matrices", [0, 1])
def test_the_matrix_instruction_multiplies(run, as_matrices):
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(16, 16, generator=g).bfloat16(), torch.randn(16, 8, generator=g).bfloat16()
    C = run("product", 768, [A, B], torch.zeros(16, 8), as_matrices)
    torch.testing.assert_close(C, A.float() @ B.float(), rtol=1e-6, atol=1e-5)


def test_transposed_matrices(run):
    x = torch.arange(256, dtype=torch.int16)
    y = run("transpose", 512, [x], torch.zeros_like(x))
    assert torch.equal(y.view(4, 8, 8), x.view(4, 8, 8).mT)


def test_shared_memory_is_nan_until_written_also_in_the_next_block(launch):
    x, y = torch.arange(8.0), torch.zeros(4)
    for wait, finite in ((0, [False, False]), (1, [True, False]), (2, [True, True])):
        launch("memory", 3, 32, 40, [x, y, wait, 0])
        assert y.isfinite().tolist() == [*finite, False, False], wait


def test_writing_past_shared_memory_is_reported(launch):
    with pytest.raises(KernelError, match="write past dynamic shared memory"):
        launch("memory", 1, 32, 40, [torch.zeros(8), torch.zeros(4), 2, 10])


def test_a_misaligned_copy_is_reported(launch):
    with pytest.raises(KernelError, match="not a multiple of 16 bytes"):
        launch("memory", 1, 32, 40, [torch.zeros(9)[1:], torch.zeros(4), 2, 0])


def test_the_order_of_threads_shows_a_race(source, launch):
    descending = launcher(source, descending=True)
    for correct in (0, 1):
        y, z = torch.zeros(64), torch.zeros(64)
        launch("race", 1, 64, 0, [y, correct])
        descending("race", 1, 64, 0, [z, correct])
        assert torch.equal(y, z) == bool(correct)
    assert torch.equal(y, torch.arange(63.0, -1, -1))


def test_shuffles_and_rounding(run):
    y = run("shuffles", 0, [], torch.zeros(160))
    i, a = torch.arange(32), torch.arange(32.0)
    assert torch.equal(y[:32], torch.full((32,), 5.0))
    assert torch.equal(y[32:64], a[i ^ 3])
    assert torch.equal(y[64:96], torch.where(i % 8 < 6, a + 2, a))
    assert torch.equal(y[96:128], (a - 1).clamp(min=0))
    assert torch.equal(y[128:], (1 + a / 256).bfloat16().float() + a)
