"""The elementwise pieces of RWKV-7 fused for the CPU (glue.cpp), each with its backward.

Each class computes what the function of model.py that is decorated with it says: a chain of tensor operators moves each
activation through memory at every link, this does it once. The function itself runs on other devices and dtypes,
without a C++ compiler, and under torch.compile, which fuses by itself.
"""

import functools

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import wkv_cuda
from common.errors import UserError
from wkv_cuda.cpp import DTYPES, library, pointer, pointers

ROWS = 32  # of glue.cpp: rows of a block, whose parameter gradients are added up


def fused(piece: type[Function]):
    """Let `piece` compute what the decorated function defines wherever it can. Its first argument is an activation."""

    def decorate(formula):
        @functools.wraps(formula)
        def f(x, *args):
            if x.device.type != "cpu" or x.dtype not in DTYPES or torch.compiler.is_compiling():
                return formula(x, *args)
            return piece.apply(x, *args) if wkv_cuda.backend() == "cpp" else formula(x, *args)

        f.formula = formula
        return f

    return decorate


def call(name: str, x, *args) -> None:
    """Run a function of glue.cpp on torch's threads, with the dtype of x."""
    threads = min(torch.get_num_threads(), 1 + x.numel() // 2**14)  # starting a thread has a price
    status = getattr(library().dll, name)(threads, DTYPES[x.dtype], *args)
    if status == 2:
        raise UserError(
            "heads of more than 256 channels are not compiled: choose smaller ones, or set WKV_BACKEND=torch"
        )
    if status:
        raise MemoryError(f"{name}: no memory for a thread's rows")


def parameter(p):
    return p.detach().float().contiguous()


def blocks(rows: int) -> int:
    return -(-rows // ROWS)


class Mix(Function):
    @staticmethod
    def forward(ctx, x, x_prev, *coefs):
        x, x_prev, c = x.contiguous(), x_prev.to(x.dtype).contiguous(), torch.cat([parameter(p) for p in coefs])
        out = tuple(torch.empty_like(x) for _ in coefs)
        call("mix_forward", x, *x.shape, len(out), pointer(x), pointer(x_prev), pointer(c), pointers(out))
        ctx.save_for_backward(x, x_prev, c)
        ctx.like = [(p.shape, p.dtype) for p in coefs]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *dout):
        x, x_prev, c = ctx.saved_tensors
        (B, T, C), n, dout = x.shape, len(dout), [g.contiguous() for g in dout]
        dx, dx_prev, dc = torch.empty_like(x), torch.empty_like(x_prev), torch.empty(blocks(B * T), n, C)
        call("mix_backward", x, B, T, C, n, pointer(x), pointer(x_prev), pointer(c), pointers(dout), pointer(dx),
             pointer(dx_prev), pointer(dc))  # fmt: skip
        grads = [g.view(shape).to(dtype) for g, (shape, dtype) in zip(dc.sum(0), ctx.like, strict=True)]
        return dx, dx_prev, *grads


class Operands(Function):
    @staticmethod
    def forward(ctx, k, v, w, a, v_low, v_first, w0, a0, v0, k_k, k_a, heads, pad):
        v_first = None if v_low is None else v_first  # layer 0 makes it, and mixes nothing
        activations = [None if t is None else t.contiguous() for t in (k, v, w, a, v_low, v_first)]
        vectors = [None if p is None else parameter(p) for p in (w0, a0, v0, k_k, k_a)]
        out = tuple(torch.empty_like(activations[0]) for _ in range(5))
        ctx.rows, ctx.heads, ctx.pad = k.numel() // k.shape[-1], heads, None if pad is None else pad.contiguous()
        call("operands_forward", k, ctx.rows, heads, k.shape[-1] // heads, pointers(activations), pointers(vectors),
             pointer(ctx.pad), pointers(out))  # fmt: skip
        ctx.save_for_backward(*activations, *vectors)
        ctx.like = [p if p is None else (p.shape, p.dtype) for p in (w0, a0, v0, k_k, k_a)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *dout):
        saved = ctx.saved_tensors
        activations, vectors = saved[:6], saved[6:]
        k, dout = activations[0], [g.contiguous() for g in dout]
        din = [None if t is None else torch.empty_like(t) for t in activations]
        sums = torch.empty(blocks(ctx.rows), 5, k.shape[-1])
        call("operands_backward", k, ctx.rows, ctx.heads, k.shape[-1] // ctx.heads, pointers(activations),
             pointers(vectors), pointer(ctx.pad), pointers(dout), pointers(din), pointer(sums))  # fmt: skip
        grads = [None if like is None else g.view(like[0]).to(like[1])
                 for g, like in zip(sums.sum(0), ctx.like, strict=True)]  # fmt: skip
        return *din, *grads, None, None


class Readout(Function):
    @staticmethod
    def forward(ctx, y, r, k, v, g, r_k, weight, bias, eps):
        activations, vectors = [t.contiguous() for t in (y, r, k, v, g)], [parameter(p) for p in (r_k, weight, bias)]
        out = torch.empty_like(activations[0])
        ctx.rows, ctx.eps = y.numel() // y.shape[-1], eps
        call("readout_forward", y, ctx.rows, *r_k.shape, eps, pointers(activations), pointers(vectors), pointer(out))
        ctx.save_for_backward(*activations, *vectors)
        ctx.dtypes = [p.dtype for p in (r_k, weight, bias)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        saved = ctx.saved_tensors
        activations, vectors = saved[:5], saved[5:]
        dout, din = dout.contiguous(), [torch.empty_like(t) for t in activations]
        sums = torch.empty(blocks(ctx.rows), 3, dout.shape[-1])
        call("readout_backward", dout, ctx.rows, *vectors[0].shape, ctx.eps, pointers(activations), pointers(vectors),
             pointer(dout), pointers(din), pointer(sums))  # fmt: skip
        grads = zip(sums.sum(0), vectors, ctx.dtypes, strict=True)
        return *din, *(g.view(p.shape).to(dtype) for g, p, dtype in grads), None


class ReluSquared(Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        call("relu_squared", x, x.numel(), pointer(x), 0, pointer(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        (x,) = ctx.saved_tensors
        dout, dx = dout.contiguous(), torch.empty_like(x)
        call("relu_squared", x, x.numel(), pointer(x), pointer(dout), pointer(dx))
        return dx
