"""The C++ operator (wkv7.cpp) on CPU tensors: allocation and ctypes calls. Operands come checked by wkv_cuda.wkv7."""

import ctypes
import functools

import torch

from wkv_cuda.build import BuildError, Library, load
from wkv_cuda.reference import wkv7_loop

CHUNK, MAX_N = 32, 128  # of wkv7.cpp: steps between checkpoints; largest head size
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


@functools.cache
def library() -> Library:
    """Built if need be, and tried once. Raises BuildError."""
    built = load()
    self_check(built)
    return built


def pointer(t):
    return 0 if t is None else t.data_ptr()


def pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*map(pointer, tensors))


def threads(steps: int) -> int:
    """Starting a thread costs as much as a few dozen steps of one head."""
    return min(torch.get_num_threads(), 1 + steps // 64)


def prepare() -> str:
    """Have the operator ready -> what compiled it. Raises BuildError."""
    return library().compiler


def supports(r: torch.Tensor) -> bool:
    return r.dtype in DTYPES and r.shape[-1] <= MAX_N and r.shape[1] > 0


def saved(r: torch.Tensor, save: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what forward keeps for backward, fp32: checkpoints [key, value], sa = S_{t-1} a_t; or none."""
    B, T, H, N = r.shape
    shapes = (B, H, -(-T // CHUNK) * save, N, N), (B, H, T * save, N)
    return tuple(r.new_empty(shape, dtype=torch.float32) for shape in shapes)


def forward(r, w, k, v, a, b, s0, save: bool, built: Library | None = None):
    """-> y, sT, checkpoints, sa; the last two are empty unless `save`."""
    B, T, H, N = r.shape
    operands = [t.contiguous() for t in (r, w, k, v, a, b)]
    s0 = None if s0 is None else s0.contiguous()
    y, sT = torch.empty_like(operands[0]), torch.empty(B, H, N, N, dtype=torch.float32)
    checkpoints, sa = saved(r, save)
    failed = (built or library()).dll.wkv7_forward(
        threads(B * H * T), DTYPES[r.dtype], B, T, H, N, pointers(operands), pointer(s0), pointer(y), pointer(sT),
        pointer(checkpoints) if save else 0, pointer(sa) if save else 0,
    )  # fmt: skip
    if failed:
        raise MemoryError("wkv7: no memory for a thread's state")
    return y, sT, checkpoints, sa


def backward(r, w, k, v, a, b, checkpoints, sa, dy, dsT):
    """-> the gradients of r w k v a b s0."""
    B, T, H, N = r.shape
    operands = [t.contiguous() for t in (r, w, k, v, a, b)]
    dy, dsT = dy.contiguous(), None if dsT is None else dsT.contiguous()
    grads, ds0 = [torch.empty_like(t) for t in operands], torch.empty(B, H, N, N, dtype=torch.float32)
    failed = library().dll.wkv7_backward(
        threads(B * H * T), DTYPES[r.dtype], B, T, H, N, pointers(operands), pointer(checkpoints), pointer(sa),
        pointer(dy), pointer(dsT), pointers(grads), pointer(ds0),
    )  # fmt: skip
    if failed:
        raise MemoryError("wkv7: no memory for a thread's states")
    return *grads, ds0


def self_check(built: Library) -> None:
    """Refuse a library that computes something else: a miscompilation must not become a result."""
    g = torch.Generator().manual_seed(0)
    r, w, k, v, a, b = (0.5 * torch.randn(1, 3, 1, 20, generator=g) for _ in range(6))
    s0 = torch.randn(1, 1, 20, 20, generator=g)
    got, want = forward(r, w, k, v, a, b, s0, False, built), wkv7_loop(r, w, k, v, a, b, s0)
    for x, y in zip(got, want, strict=False):
        if not torch.allclose(x, y, rtol=1e-4, atol=1e-4):
            raise BuildError(f"{built.path} computes wrong results (compiler {built.compiler})")
