"""The WKV7 operator of others. Each function here returns f(r, x, k, v, a, b, s0) -> y, sT with the layout of
wkv_cuda.wkv7, where x is w, or f.decay(w) if f has that; or raises ImportError or OSError with the reason why it can't.
"""

import ctypes
import importlib.util
import math
import sysconfig
from pathlib import Path

import torch


def log_decay(w):
    return -torch.exp(w)


def whole(f):
    """f with w itself as its operand."""
    return (lambda r, w, *rest: f(r, f.decay(w), *rest)) if hasattr(f, "decay") else f


def fla_chunk():
    """flash-linear-attention's naive chunked form, torch on any device.

    Its layout: (B, H, T, N), log decays, queries scaled by N^-1/2 inside, state [key, value].
    """
    path = Path(sysconfig.get_paths()["purelib"]) / "fla/ops/generalized_delta_rule/dplr/naive.py"
    if not path.exists():
        raise ImportError("fla is not installed")
    spec = importlib.util.spec_from_file_location("fla_naive", path)  # the package itself needs triton to be imported
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def f(r, log_d, k, v, a, b, s0):
        if r.shape[1] % 16:
            raise ValueError("its chunks are of 16 tokens")
        t = lambda x: x.transpose(1, 2)
        r = r * r.shape[-1] ** 0.5
        y, S = module.dplr_chunkwise(t(r), t(k), t(v), t(a), t(b), t(log_d), initial_state=s0.mT, chunk_size=16)
        return t(y), S.mT

    f.decay = log_decay
    return f


def fla_cuda():
    """flash-linear-attention's Triton kernels with the options of its own RWKV-7 layer; state [key, value]."""
    if importlib.util.find_spec("fla") is None:
        raise ImportError("fla is not installed")
    from fla.ops.rwkv7 import chunk_rwkv7

    options = dict(output_final_state=True, safe_gate=True, lower_bound=-math.exp(-0.5), chunk_size=64)

    def f(r, log_d, k, v, a, b, s0):
        y, S = chunk_rwkv7(r, log_d, k, v, a, b, initial_state=s0.mT.contiguous(), **options)
        return y, S.mT

    f.decay = log_decay
    return f


def wind_cuda():
    """wind_rwkv's chunked CUDA kernel for heads of 64: T a multiple of 16, everything in bf16, the state too."""
    if importlib.util.find_spec("wind_rwkv") is None:
        raise ImportError("wind_rwkv is not installed")
    from wind_rwkv.rwkv7 import attn_chunked_cuda, load_chunked_cuda

    load_chunked_cuda(64)

    def f(r, w, k, v, a, b, s0):
        y, S = attn_chunked_cuda(r, w, k, v, a, b, s0.to(r.dtype))
        return y, S.float()

    return f


class GgmlParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def ggml(folder: str = ""):
    """llama.cpp's operator, fp32, forward only: a graph of one node, built once, computed at every call.

    folder: where libggml-base and libggml-cpu lie; "" = those of the package llama-cpp-python.
    """
    if not folder:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
    names = [next(Path(folder).rglob(f"libggml-{n}*.so"), None) for n in ("base", "cpu")]
    if None in names:
        raise ImportError(f"no libggml-base and libggml-cpu below {folder}")
    base, cpu = (ctypes.CDLL(str(n), mode=ctypes.RTLD_GLOBAL) for n in names)
    for name in ("init", "new_tensor_4d", "get_data", "rwkv_wkv7", "new_graph"):
        getattr(base, f"ggml_{name}").restype = ctypes.c_void_p
    base.ggml_free.restype = None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    last = {}  # of the inputs seen last: their graph, and its context

    def build(shape):
        B, T, H, N = shape
        params = GgmlParams(8 * B * T * H * N * 4 + 4 * B * H * N * N * 4 + (64 << 20), None, False)
        ctx = pointer(base.ggml_init(params))
        new = lambda *n: pointer(base.ggml_new_tensor_4d(ctx, 0, *(size(x) for x in n)))
        tensors = [new(N, H, B * T, 1) for _ in range(6)] + [new(N * N * H, B, 1, 1)]
        out = pointer(base.ggml_rwkv_wkv7(ctx, *tensors))
        graph = pointer(base.ggml_new_graph(ctx))
        base.ggml_build_forward_expand(graph, out)
        return ctx, graph, [base.ggml_get_data(t) for t in tensors], base.ggml_get_data(out)

    def f(r, d, k, v, a, b, s0):
        B, T, H, N = r.shape
        if last.get("of") is not r:  # inputs are copied in once, outside the time of later calls
            if "graph" in last:
                base.ggml_free(last["graph"][0])
            last.update(of=r, graph=build(r.shape))
            for x, at in zip((r, d, k, v, a, b, s0), last["graph"][2], strict=True):
                ctypes.memmove(at, x.contiguous().data_ptr(), x.numel() * 4)
        ctx, graph, _, out = last["graph"]
        cpu.ggml_graph_compute_with_ctx(ctx, graph, torch.get_num_threads())
        n = B * T * H * N
        floats = torch.frombuffer((ctypes.c_float * (n + B * H * N * N)).from_address(out), dtype=torch.float32)
        return floats[:n].view(B, T, H, N), floats[n:].view(B, H, N, N)

    f.decay = lambda w: torch.exp(-torch.exp(w))
    return f
