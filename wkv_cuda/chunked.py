"""Kernel B (wkv7_chunked.cu): the operator in chunks of 32 steps on tensor cores, bf16, forward and backward.

    launch = launcher(SOURCE, defines(N))     # of wkv_cuda.cuda; tests/cuda_host.py's runs it on a CPU
    y, sT, states = forward(launch, r, w, k, v, a, b, s0, save=True)
    dr, dw, dk, dv, da, db, ds0 = backward(launch, r, w, k, v, a, b, states, dy, dsT)

Shapes and meanings are those of wkv_cuda.wkv7: operands (B, T, H, N) bf16 with T >= 1 and N in HEAD_SIZES, states
(B, H, N, N) fp32. A step's decay below exp(-2.5) is taken as exp(-2.5) (from w = 0.91 on), without gradient; RWKV-7's
is above 0.545. Everything is allocated by torch and nothing is read back, so that CUDA graphs can record both
directions. Results are the same in every run.
"""

from pathlib import Path

import torch

from wkv_cuda.cuda import aligned

SOURCE = Path(__file__).with_name("wkv7_chunked.cu")
CHUNK, STAGES, SCAN_ROWS = 32, 4, 32  # as in chunk.cuh and scan.cuh
HEAD_SIZES = (32, 64)
MAX_SEGMENTS = 16


def defines(N: int) -> dict[str, int]:
    """The -D options for head size N, one of HEAD_SIZES."""
    return {"N": N}


def shared_bytes(N: int) -> dict[str, int]:
    """Of each kernel with a fixed layout, as the structs of wkv7_chunked.cu say."""
    decays, diagonal = 4 * (CHUNK + 2) * N, 4 * 2 * 16 * 17
    tile, state, square = (2 * rows * (columns + 8) for rows, columns in ((CHUNK, N), (N, N), (CHUNK, CHUNK)))
    return {
        "prepare": decays + diagonal + 6 * tile + 4 * square,
        "prepare_backward": decays + diagonal + 4 * tile + 2 * square,
        "outputs": tile + state,
        "gradients": decays + diagonal + 8 * tile + 2 * state + 4 * square,
    }


def plan(heads: int, N: int, chunks: int, processors: int) -> int:
    """-> segments of time in the scan, for `heads` = B H.

    A warp carries 16 rows of a state. While there are fewer of them than half the schedulers of the card (4 a
    multiprocessor), time is split too: that doubles the work and adds a step per segment, so not below 8 chunks.
    """
    warps = max(1, heads * N // 16)
    segments = 1 if warps >= 2 * processors else -(-4 * processors // warps)
    return max(1, min(segments, chunks // 8, MAX_SEGMENTS))


def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def scan(launch, transition, addition, decay, start, B, H, backward, segments=None):
    """-> the state after the last chunk (before the first if backward). `addition` becomes the states between them."""
    N, chunks = decay.shape[-1], decay.shape[1]
    segments = segments or plan(B * H, N, chunks, processors(decay.device))
    length = -(-chunks // segments)
    segments = -(-chunks // length)  # none without chunks
    end = decay.new_empty(B, H, N, N)
    maps = decay.new_empty(B * H, segments, 2, N, N) if segments > 1 else None
    shared = STAGES * 2 * (N * N + SCAN_ROWS * N + 2 * N)
    args = (transition, addition, decay, start, maps, end, chunks, H, segments, int(backward))
    blocks = B * H * segments * N // SCAN_ROWS
    if segments > 1:
        launch("scan", 2 * blocks, 64, shared, (*args, 1))
    launch("scan", blocks, 64, shared, (*args, 0))
    return end


def forward(launch, r, w, k, v, a, b, s0, save: bool, segments=None):
    """-> y, sT, and for backward the states before each chunk, (B, chunks, H, N, N) bf16; None without `save`.

    s0 may be None, which is zeros. segments: of the scan, instead of plan()'s; how many changes roundings only.
    """
    operands = [aligned(t) for t in (r, w, k, v, a, b)]
    B, T, H, N = r.shape
    chunks, shared = -(-T // CHUNK), shared_bytes(N)
    y = torch.empty_like(operands[0])
    transition, states = (r.new_empty(B, chunks, H, N, N) for _ in range(2))
    Q, decay = r.new_empty(B, chunks, H, CHUNK, N), r.new_empty(B, chunks, H, N, dtype=torch.float32)
    grid = B * chunks * H
    launch("prepare", grid, 2 * N, shared["prepare"], (*operands, y, Q, transition, states, decay, T, H))
    sT = scan(launch, transition, states, decay, aligned(s0), B, H, False, segments)
    launch("outputs", grid, 2 * N, shared["outputs"], (Q, states, y, T, H))
    return y, sT, states if save else None


def backward(launch, r, w, k, v, a, b, states, dy, dsT, segments=None):
    """-> the gradients of r w k v a b (bf16) and s0 (fp32). dsT may be None, which is zeros."""
    r, w, k, v, a, b, dy = (aligned(t) for t in (r, w, k, v, a, b, dy))
    B, T, H, N = r.shape
    chunks, shared = -(-T // CHUNK), shared_bytes(N)
    transition, dstates = (r.new_empty(B, chunks, H, N, N) for _ in range(2))
    decay = r.new_empty(B, chunks, H, N, dtype=torch.float32)
    grid = B * chunks * H
    args = (r, w, a, b, dy, transition, dstates, decay, T, H)
    launch("prepare_backward", grid, 2 * N, shared["prepare_backward"], args)
    ds0 = scan(launch, transition, dstates, decay, aligned(dsT), B, H, True, segments)
    grads = [torch.empty_like(r) for _ in range(6)]
    args = (r, w, k, v, a, b, dy, states, dstates, *grads, T, H)
    launch("gradients", grid, 2 * N, shared["gradients"], args)
    return *grads, ds0
