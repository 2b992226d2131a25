"""The WKV7 operator of RWKV-7, with a start state, an end state and gradients through both.

    y, sT = wkv7(r, w, k, v, a, b, s0)

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T ,   y_t = S_t r_t ,   d_t = exp(-exp(w_t))

Backends: `cpp` (wkv7.cpp) on CPUs and `cuda` (wkv7.cu, wkv7_chunked.cu) on NVIDIA GPUs, compiled at first use; `torch`
(chunked, any device), `reference` (the loop). The best that works is chosen for a device and the reason is in
describe(); WKV_BACKEND=name forces one, and then a failure is fatal.
`python -m wkv_cuda` builds, tests against fp64 and reports: send its output with a bug report.
"""

import functools
import os
import sys

import torch

from common.errors import UserError
from wkv_cuda import cpp, gpu
from wkv_cuda.build import BuildError
from wkv_cuda.reference import wkv7_chunked, wkv7_loop

COMPILED = {"cpp": cpp, "cuda": gpu}  # each has prepare(), supports(r), saved(r, save), forward() and backward()
NATIVE = {"cpu": "cpp", "cuda": "cuda"}  # by type of device


def wkv7(r, w, k, v, a, b, s0=None):
    """Run the recurrence over T >= 0 steps.

    r w k v a b: (B, T, H, N), all fp32, bf16 or fp64. w <= 0, with d = exp(-exp(w)); -inf means no decay: a step with
    w = -inf and k = v = a = b = 0 changes nothing. (Larger w is exact too, but for the torch
    form, see LOWEST, and from w = 0.91 on for the CUDA kernel in chunks, see chunked.py.)
    s0: (B, H, N, N) [value, key], fp32 (fp64 with fp64 operands), None = zeros.
    Returns y (B, T, H, N) in the operands' dtype and the state after step T, like s0. Differentiable once, in all.
    Raises UserError for operands that don't fit together.
    Source: RWKV-7 (arXiv 2503.14456), section 4; RWKV-LM RWKV-v7.
    """
    B, T, H, N = check(r, w, k, v, a, b, s0)
    name = backend(r.device.type)
    if name in COMPILED and COMPILED[name].supports(r):
        grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (r, w, k, v, a, b, s0))
        if not grad and not torch.compiler.is_compiling():  # skip the dispatcher: it costs more than a decoding step
            y, sT, _, _ = COMPILED[name].forward(r, w, k, v, a, b, s0, False)
        else:
            y, sT, _, _ = torch.ops.future_seed.wkv7(r, w, k, v, a, b, s0, grad)
        return y, sT
    if s0 is None:
        s0 = r.new_zeros(B, H, N, N, dtype=torch.float64 if r.dtype == torch.float64 else torch.float32)
    return (wkv7_loop if name == "reference" else wkv7_chunked)(r, w, k, v, a, b, s0)


def check(r, w, k, v, a, b, s0) -> tuple[int, int, int, int]:
    if r.dim() != 4:
        raise UserError(f"wkv7: r must be (B, T, H, N), got {tuple(r.shape)}")
    for name, t in (("w", w), ("k", k), ("v", v), ("a", a), ("b", b)):
        if t.shape != r.shape or t.dtype != r.dtype or t.device != r.device:
            raise UserError(
                f"wkv7: {name} is {tuple(t.shape)} {t.dtype} on {t.device}, expected {tuple(r.shape)} {r.dtype} on"
                f" {r.device} like r"
            )
    if r.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise UserError(f"wkv7: operands are {r.dtype}, expected float32, bfloat16 or float64")
    B, T, H, N = r.shape
    wanted = torch.float64 if r.dtype == torch.float64 else torch.float32
    if s0 is not None and (s0.shape != (B, H, N, N) or s0.dtype != wanted or s0.device != r.device):
        raise UserError(
            f"wkv7: s0 is {tuple(s0.shape)} {s0.dtype} on {s0.device}, expected {(B, H, N, N)} {wanted} on {r.device}"
        )
    return B, T, H, N


# ---- the choice of a backend


@functools.cache
def _chosen(device: str) -> tuple[str, str]:
    """-> name, why. Made once a process and type of device, at the first call."""
    forced, native = os.environ.get("WKV_BACKEND", ""), NATIVE.get(device)
    if forced in ("torch", "reference"):
        return forced, "WKV_BACKEND says so"
    if forced not in ("", *COMPILED):
        raise UserError(f"WKV_BACKEND={forced}: use reference, torch, cpp or cuda")
    if forced and forced != native:
        raise UserError(f"WKV_BACKEND={forced} can't run on this device ({device}): unset it, or use torch")
    if native is None:
        return "torch", f"there is nothing faster for {device}"
    try:
        return native, COMPILED[native].prepare()
    except BuildError as e:
        if forced:
            raise UserError(f"WKV_BACKEND={forced}, but it can't be used: {e}") from e
        reason = str(e).splitlines()
        why = f"{reason[0]}{' ...' if len(reason) > 1 else ''}"
        print(f"wkv: torch form (5 or more times slower), because {why}; python -m wkv_cuda says more", file=sys.stderr)
        return "torch", why


def backend(device: str = "cpu") -> str:
    """Name of the backend for fp32 and bf16 operands on this type of device."""
    return _chosen(device)[0]


# torch.compile asks once, and does not look into building a library. This is torch.compiler.assume_constant_result,
# which would import all of torch._dynamo: more than a second at every start.
backend._dynamo_marked_constant = True


def describe(device: str = "cpu") -> str:
    name, why = _chosen(device)
    return f"{name} ({why})"


# ---- registration with torch: autograd, and shapes for torch.compile


@torch.library.custom_op("future_seed::wkv7", mutates_args=())
def _forward(
    r: torch.Tensor, w: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
    s0: torch.Tensor | None, save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return COMPILED[NATIVE[r.device.type]].forward(r, w, k, v, a, b, s0, save)


@_forward.register_fake
def _(r, w, k, v, a, b, s0, save):
    B, T, H, N = r.shape
    y = torch.empty_like(r, memory_format=torch.contiguous_format)
    return y, r.new_empty(B, H, N, N, dtype=torch.float32), *COMPILED[NATIVE[r.device.type]].saved(r, save)


@torch.library.custom_op("future_seed::wkv7_backward", mutates_args=())
def _backward(
    r: torch.Tensor, w: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
    kept: torch.Tensor, sa: torch.Tensor, dy: torch.Tensor, dsT: torch.Tensor | None,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:  # fmt: skip
    return COMPILED[NATIVE[r.device.type]].backward(r, w, k, v, a, b, kept, sa, dy, dsT)


@_backward.register_fake
def _(r, w, k, v, a, b, kept, sa, dy, dsT):
    B, T, H, N = r.shape
    like = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (r, w, k, v, a, b)]
    return *like, r.new_empty(B, H, N, N, dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    *operands, s0, save = inputs
    ctx.set_materialize_grads(False)
    ctx.has_s0 = s0 is not None
    if not save:
        raise RuntimeError("future_seed::wkv7 needs save=True to be differentiated")
    ctx.save_for_backward(*operands, *output[2:])


def _differentiate(ctx, dy, dsT, _kept, _sa):
    *operands, kept, sa = ctx.saved_tensors
    dy = torch.zeros_like(operands[0]) if dy is None else dy
    *grads, ds0 = torch.ops.future_seed.wkv7_backward(*operands, kept, sa, dy, dsT)
    return *grads, ds0 if ctx.has_s0 else None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
