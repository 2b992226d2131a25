"""The WKV7 operator on this CPU, beside what one would use instead: one process, one run, repetitions interleaved.

    python bench/wkv.py                               # seconds; peers not installed are named
    python bench/wkv.py --full --json=wkv.json        # more repetitions, the loop and the compiled torch form too
    python bench/wkv.py --ggml=DIR                    # directory of libggml-base and libggml-cpu (llama.cpp's operator)

Peers: flash-linear-attention's naive chunked form (pip install --no-deps fla-core flash-linear-attention, and einops),
ggml_rwkv_wkv7 of llama.cpp (found in the package llama-cpp-python, or --ggml). Ratios are to the C++ backend: above 1
is slower. Errors are of y against the fp64 loop, relative to its largest value.
"""

import argparse
import ctypes
import importlib.util
import platform
import statistics
import sys
import sysconfig
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wkv_cuda
from common.run import environment, write_json
from wkv_cuda.__main__ import operands
from wkv_cuda.reference import wkv7_chunked, wkv7_loop


def fla_chunk():
    """Its layout: (B, H, T, N), log decays, queries scaled by N^-1/2 inside, state [key, value]."""
    path = Path(sysconfig.get_paths()["purelib"]) / "fla/ops/generalized_delta_rule/dplr/naive.py"
    spec = importlib.util.spec_from_file_location("fla_naive", path)  # the package itself needs triton to be imported
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def f(r, w, k, v, a, b, s0):
        t = lambda x: x.transpose(1, 2)
        r, log_d = r * r.shape[-1] ** 0.5, -torch.exp(w)
        y, S = module.dplr_chunkwise(t(r), t(k), t(v), t(a), t(b), t(log_d), initial_state=s0.mT, chunk_size=16)
        return t(y), S.mT

    return f


class GgmlParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def ggml(folder: str):
    """llama.cpp's operator, forward only: a graph of one node, built once, computed at every call; decays not logs."""
    if not folder:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("llama_cpp is not installed")
        folder = Path(spec.origin).parent / "lib"
    names = [next(Path(folder).rglob(f"libggml-{n}*.so"), None) for n in ("base", "cpu")]
    if None in names:
        raise ImportError(f"no libggml-base and libggml-cpu below {folder}")
    base, cpu = (ctypes.CDLL(str(n), mode=ctypes.RTLD_GLOBAL) for n in names)
    for name in ("init", "new_tensor_4d", "get_data", "rwkv_wkv7", "new_graph"):
        getattr(base, f"ggml_{name}").restype = ctypes.c_void_p
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    graphs = {}

    def build(shape):
        B, T, H, N = shape
        params = GgmlParams(16 * B * T * H * N * 4 + 4 * B * H * N * N * 4 + (64 << 20), None, False)
        ctx = pointer(base.ggml_init(params))
        new = lambda *n: pointer(base.ggml_new_tensor_4d(ctx, 0, *(size(x) for x in n)))
        tensors = [new(N, H, B * T, 1) for _ in range(6)] + [new(N * N * H, B, 1, 1)]
        out = pointer(base.ggml_rwkv_wkv7(ctx, *tensors))
        graph = pointer(base.ggml_new_graph(ctx))
        base.ggml_build_forward_expand(graph, out)
        return ctx, graph, [base.ggml_get_data(t) for t in tensors], base.ggml_get_data(out)

    def f(r, w, k, v, a, b, s0):
        B, T, H, N = r.shape
        key = r.shape, r.data_ptr()
        if key not in graphs:  # inputs are copied in once, outside the time of later calls
            graphs[key] = build(r.shape)
            for x, at in zip((r, torch.exp(-torch.exp(w)), k, v, a, b, s0), graphs[key][2], strict=True):
                ctypes.memmove(at, x.contiguous().data_ptr(), x.numel() * 4)
        ctx, graph, _, out = graphs[key]
        cpu.ggml_graph_compute_with_ctx(ctx, graph, torch.get_num_threads())
        n = B * T * H * N
        floats = torch.frombuffer((ctypes.c_float * (n + B * H * N * N)).from_address(out), dtype=torch.float32)
        return floats[:n].view(B, T, H, N), floats[n:].view(B, H, N, N)

    return f


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(implementations: dict, inputs, repeats: int) -> dict[str, dict]:
    """Median milliseconds of forward, and of forward and backward, and the error of y, of each implementation."""
    exact = wkv7_loop(*(x.double() for x in inputs))[0]
    leaves = [x.clone().requires_grad_() for x in inputs]
    dy, dsT = torch.randn_like(inputs[0]), torch.randn_like(inputs[6])

    def both(f):
        y, sT = f(*leaves)
        torch.autograd.backward([y, sT], [dy, dsT])
        for x in leaves:
            x.grad = None

    rows = {}
    for name, (f, differentiable) in implementations.items():
        with torch.no_grad():
            y = f(*inputs)[0]
        rows[name] = dict(error=((y - exact).abs().max() / exact.abs().max()).item(), forward=[], both=[])
        if differentiable:
            both(f)
    for _ in range(repeats):
        for name, (f, differentiable) in implementations.items():
            with torch.no_grad():
                rows[name]["forward"].append(seconds(lambda f=f: f(*inputs)))
            if differentiable:
                rows[name]["both"].append(seconds(lambda f=f: both(f)))
    for row in rows.values():
        for key in ("forward", "both"):
            row[key] = statistics.median(row[key]) * 1e3 if row[key] else None
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("B", 2), ("T", 512), ("H", 12), ("N", 64), ("threads", torch.get_num_threads())):
        parser.add_argument(f"-{name}" if len(name) == 1 else f"--{name}", type=int, default=default)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--ggml", default="", metavar="DIR")
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    ours = wkv_cuda.backend()
    todo = {ours: (wkv_cuda.wkv7, True), "torch": (wkv7_chunked, True)}
    if args.full:
        todo |= {"reference": (wkv7_loop, True), "torch compiled": (torch.compile(wkv7_chunked), True)}
    missing = {}
    for name, make, differentiable in (("fla chunk", fla_chunk, True), ("ggml", lambda: ggml(args.ggml), False)):
        try:
            todo[name] = (make(), differentiable)
        except (ImportError, OSError) as e:
            missing[name] = str(e)
    rows = measure(todo, operands(args.B, args.T, args.H, args.N), 15 if args.full else 5)
    print(f"(B, T, H, N) = ({args.B}, {args.T}, {args.H}, {args.N}), fp32, {args.threads} threads, {processor_name()}, "
          f"torch {torch.__version__}, {wkv_cuda.describe()}")  # fmt: skip
    print(f"{'':16}{'forward ms':>12}{'ratio':>8}{'fwd+bwd ms':>12}{'ratio':>8}{'error':>10}")
    for name, row in rows.items():
        cells = [x for k in ("forward", "both") for x in (row[k], row[k] and row[k] / rows[ours][k])]
        formats = zip(cells, (12, 8, 12, 8), (2, 1, 2, 1), strict=True)
        texts = [f"{x:{width}.{digits}f}" if x else f"{'-':>{width}}" for x, width, digits in formats]
        print(f"{name:16}{''.join(texts)}{row['error']:10.0e}")
    for name, reason in missing.items():
        print(f"{name:16}not installed ({reason.splitlines()[0]})")
    if args.json:
        box = dict(processor=processor_name(), threads=args.threads, wkv=wkv_cuda.describe())
        write_json(args.json, dict(shape=[args.B, args.T, args.H, args.N], **environment() | box, rows=rows))


if __name__ == "__main__":
    main()
