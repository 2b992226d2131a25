"""The CUDA operator on CUDA tensors: which kernel takes a call, and what forward keeps for backward."""

import functools

import torch

from wkv_cuda import chunked, sequential
from wkv_cuda.build import BuildError
from wkv_cuda.cuda import launcher
from wkv_cuda.reference import wkv7_loop

CHUNKED_FROM = 64  # steps: below, three launches cost more than what they save


def takes_chunks(dtype: torch.dtype, T: int, N: int) -> bool:
    """Tensor cores for bf16 segments; decoding, fp32 and other head sizes go step by step."""
    return dtype == torch.bfloat16 and N in chunked.HEAD_SIZES and T >= CHUNKED_FROM


def supports(r: torch.Tensor) -> bool:
    return r.dtype in (torch.float32, torch.bfloat16) and r.shape[-1] in sequential.SIZES and r.shape[1] > 0


@functools.cache
def launch_for(dtype: torch.dtype, N: int, chunks: bool):
    if chunks:
        return launcher(chunked.SOURCE, chunked.defines(N))
    return launcher(sequential.SOURCE, sequential.defines(N, dtype))


def saved(r: torch.Tensor, save: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors like the two that forward returns for backward (empty in every sense unless `save`)."""
    B, T, H, N = r.shape
    if takes_chunks(r.dtype, T, N):
        return r.new_empty(B, -(-T // chunked.CHUNK) * save, H, N, N), r.new_empty(0)
    shapes = (B, H, -(-T // sequential.CHUNK) * save, N, N), (B, H, T * save, N)
    return tuple(r.new_empty(shape, dtype=torch.float32) for shape in shapes)


def forward(r, w, k, v, a, b, s0, save: bool):
    """-> y, sT and what backward needs, two tensors."""
    chunks = takes_chunks(r.dtype, r.shape[1], r.shape[-1])
    y, sT, *kept = (chunked if chunks else sequential).forward(
        launch_for(r.dtype, r.shape[-1], chunks), r, w, k, v, a, b, s0, save
    )
    empty = saved(r, save)
    return y, sT, *(x if x is not None else e for x, e in zip([*kept, None][:2], empty, strict=True))


def backward(r, w, k, v, a, b, kept, sa, dy, dsT):
    """-> the gradients of r w k v a b s0."""
    if takes_chunks(r.dtype, r.shape[1], r.shape[-1]):
        return chunked.backward(launch_for(r.dtype, r.shape[-1], True), r, w, k, v, a, b, kept, dy, dsT)
    launch = launch_for(r.dtype, r.shape[-1], False)
    return sequential.backward(launch, r, w, k, v, a, b, kept, sa, dy, dsT)


def prepare() -> str:
    """Compile both kernels and run each once; refuse what computes something else -> the card. Raises BuildError."""
    if not torch.cuda.is_available():
        raise BuildError("torch finds no CUDA device")
    self_check()
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def self_check() -> None:
    g = torch.Generator().manual_seed(0)
    for dtype, T, tolerance in ((torch.float32, 3, 1e-4), (torch.bfloat16, CHUNKED_FROM, 2e-2)):
        r, w, k, v, a, b = (0.3 * torch.randn(1, T, 1, 64, generator=g).to("cuda", dtype) for _ in range(6))
        inputs = (r, w - 1, k, v, a / 4, b / 4, torch.randn(1, 1, 64, 64, generator=g).cuda())
        got, want = forward(*inputs, False), wkv7_loop(*inputs)
        for x, y in zip(got, want, strict=False):
            if not (x.float() - y.float()).abs().max() < tolerance * y.float().abs().max():
                raise BuildError(
                    f"the CUDA kernel for {dtype} computes wrong results on {torch.cuda.get_device_name()}"
                )
