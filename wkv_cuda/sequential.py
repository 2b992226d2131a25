"""Kernel A (wkv7.cu): the recurrence step by step on a GPU, for decoding, fp32 and odd shapes.

    launch = launcher(SOURCE, defines(N, dtype))     # of wkv_cuda.cuda; tests/cuda_host.py's runs it on a CPU
    y, sT, checkpoints, sa = forward(launch, r, w, k, v, a, b, s0, save=True)
    dr, dw, dk, dv, da, db, ds0 = backward(launch, r, w, k, v, a, b, checkpoints, sa, dy, dsT)

Shapes and meanings are those of wkv_cuda.wkv7: operands (B, T, H, N) fp32 or bf16 with T >= 1 and N in SIZES, states
(B, H, N, N) fp32. Any decay. Results are the same in every run.
"""

import functools
from pathlib import Path

import torch

from wkv_cuda.cuda import aligned

SOURCE = Path(__file__).with_name("wkv7.cu")
SIZES = (16, 32, 64, 128)
CHUNK, TILE = 16, 8  # steps between checkpoints; steps whose operands forward holds in shared memory


def shape(N: int) -> dict[str, int]:
    """How a head's state is laid out over threads: at most 128 registers a thread and no spills, found by trying."""
    fwd_lanes = {16: 4, 32: 4, 64: 8, 128: 16}[N]
    bwd_rows, bwd_lanes, sub = {16: (16, 4, 4), 32: (32, 4, 4), 64: (64, 8, 4), 128: (32, 4, 2)}[N]
    return {
        "N": N, "CHUNK": CHUNK, "TILE": TILE, "FWD_ROWS": 16, "FWD_LANES": fwd_lanes,
        "SUB": sub, "BWD_ROWS": bwd_rows, "BWD_LANES": bwd_lanes,
    }  # fmt: skip


def defines(N: int, dtype: torch.dtype) -> dict[str, int]:
    """The -D options of the case: head size and type of the operands."""
    return shape(N) | {"BF16": int(dtype == torch.bfloat16)}


def forward(launch, r, w, k, v, a, b, s0, save: bool):
    """-> y, sT, and for backward checkpoints (B, H, ceil(T/CHUNK), N, N) and sa (B, H, T, N), None without `save`.

    s0 may be None, which is zeros.
    """
    B, T, H, N = r.shape
    operands, s0 = [x.contiguous() for x in (r, w, k, v, a, b)], aligned(s0)
    new = functools.partial(torch.empty, dtype=torch.float32, device=r.device)
    y, sT = torch.empty_like(operands[0]), new(B, H, N, N)
    checkpoints, sa = (new(B, H, -(-T // CHUNK), N, N), new(B, H, T, N)) if save else (None, None)
    s = shape(N)
    rows = s["FWD_ROWS"]
    launch(
        "wkv7_forward", B * H * N // rows, rows * s["FWD_LANES"], 4 * min(T, TILE) * (5 * N + 3 * rows),
        [*operands, s0, y, sT, checkpoints, sa, T, H],
    )  # fmt: skip
    return y, sT, checkpoints, sa


def backward(launch, r, w, k, v, a, b, checkpoints, sa, dy, dsT):
    """-> dr, dw, dk, dv, da, db in the operands' dtype and ds0 in fp32. dsT may be None, which is zeros."""
    B, T, H, N = r.shape
    operands, dsT = [x.contiguous() for x in (r, w, k, v, a, b)], aligned(dsT)
    grads = [torch.empty_like(x) for x in operands]
    new = functools.partial(torch.empty, dtype=torch.float32, device=r.device)
    s, ds0 = shape(N), new(B, H, N, N)
    rows, splits = s["BWD_ROWS"], N // s["BWD_ROWS"]
    parts = new(splits, 5, B, T, H, N) if splits > 1 else None  # of the sums over values
    floats = CHUNK * (5 * N + 3 * rows) + s["SUB"] * (5 * (N + 8) + rows) + 2 * rows
    launch(
        "wkv7_backward", B * H * splits, N * s["BWD_LANES"], 4 * floats,
        [*operands, checkpoints, sa, dy.contiguous(), dsT, *grads, ds0, parts, r.numel(), T, H],
    )  # fmt: skip
    if splits > 1:
        dr, dw, dk, _, da, db = grads
        launch("wkv7_add_parts", -(-r.numel() // 256), 256, 0, [parts, dr, dw, dk, da, db, r.numel()])
    return *grads, ds0
