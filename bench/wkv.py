"""The WKV7 operator beside what one would use instead: one process, one run, repetitions interleaved.

    python bench/wkv.py                            # one shape, fp32 and bf16, seconds
    python bench/wkv.py --full --json=wkv.json     # more shapes and rounds, the loop and the compiled torch form too
    python bench/wkv.py --shape=1,2048,12,64 --threads=1
    python bench/wkv.py --device=cuda              # CUDA graphs; beside fla's and wind_rwkv's kernels
    python bench/wkv.py --compare before.json after.json

Peers that are installed: fla's naive chunked form, ggml_rwkv_wkv7 of llama-cpp-python (or --ggml=DIRECTORY). Ratios are
times relative to this repository's kernel: above 1 is slower. GFLOP/s count the recurrence step by step (5 N^2
multiply-adds a token and head forward, 13 N^2 backward), GB/s what has to be read and written at least, whatever an
implementation really does; "of peak" is the larger share of the machine's fp32 matrix product or copy, measured in the
same run. Errors are relative to the largest value, against the loop in fp64, on the first two heads of the first row.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wkv_cuda
from bench import measuring, operators
from common import run
from wkv_cuda.__main__ import operands
from wkv_cuda.__main__ import run as forward_backward
from wkv_cuda.reference import wkv7_chunked, wkv7_loop

SHAPES = {"cpu": [(2, 512, 12, 64), (1, 2048, 12, 64), (8, 256, 12, 64), (1, 1, 12, 64)],
          "cuda": [(8, 4096, 12, 64), (1, 8192, 12, 64), (8, 4096, 64, 64)]}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WRONG = 0.05  # error of y that no rounding explains; the time of a wrong result is not a figure
LOOP_TOKENS = 1024  # B * T up to which the loop over tokens is worth waiting for


def implementations(args, shape, precision: str, missing: dict) -> dict:
    """Name -> (f, differentiable) for a shape; this repository's kernel first."""
    B, T, H, N = shape
    cpu, fp32, first = args.device == "cpu", precision == "fp32", shape == args.shapes[0]
    todo = {wkv_cuda.backend(args.device): (wkv_cuda.wkv7, True), "torch": (wkv7_chunked, True)}
    if args.full and cpu and fp32 and B * T <= LOOP_TOKENS:
        todo["loop"] = (wkv7_loop, True)
    if args.full and cpu and fp32 and first:  # compiling takes a minute a shape
        todo["torch compiled"] = (torch.compile(wkv7_chunked), True)
    peers = []
    if cpu and fp32:
        peers = [("fla chunk", operators.fla_chunk, True), ("ggml", lambda: operators.ggml(args.ggml), False)]
    elif not cpu and not fp32:
        peers = [("fla", operators.fla_cuda, True), ("wind_rwkv", operators.wind_cuda, True)]
    for name, make, differentiable in peers:
        try:
            todo[name] = (make(), differentiable)
        except (ImportError, OSError, RuntimeError) as e:
            missing[name] = str(e).splitlines()[0]
    return todo


def cost(shape, itemsize: int, backward: bool) -> tuple[float, float]:
    """Floating-point operations, and bytes that must move: operands, results, states, and all their gradients."""
    B, T, H, N = shape
    tokens, state = B * T * H, 2 * B * H * N * N * 4
    if not backward:
        return 10 * N * N * tokens, 7 * N * itemsize * tokens + state
    return 36 * N * N * tokens, 20 * N * itemsize * tokens + 2 * state


def part(tensors: list, states: tuple[int, ...]) -> list:
    """First row, first two heads; `states` are the indices of those that are (B, H, N, N)."""
    return [x[:1, :2] if i in states else x[:1, :, :2] for i, x in enumerate(tensors)]


def errors(f, differentiable: bool, inputs, dy, dsT, exact) -> tuple[float, float | None]:
    """Of y, and of the worst of sT and the gradients (None if there are none)."""
    relative = lambda x, e: ((x.double() - e).abs().max() / e.abs().max()).item()
    if not differentiable:
        return relative(f(*inputs)[0][:1, :, :2], exact[0]), None
    got = part(forward_backward(f, inputs, dy, dsT), (1, 8))
    each = [relative(x, e) for x, e in zip(got, exact, strict=True)]
    return each[0], max(each[1:])


def timer(f, device: str):
    """-> a function that runs f() once and returns its seconds; on a GPU a replay of its CUDA graph."""
    if device == "cpu":
        return lambda: measuring.seconds(f)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a graph may only be captured of what has run before
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()

    def replay():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return replay


def timers(f, differentiable: bool, inputs, dy, dsT, device: str) -> dict:
    """Of forward without gradients, and of forward and backward with all of them."""
    if hasattr(f, "decay"):
        inputs = [inputs[0], f.decay(inputs[1]), *inputs[2:]]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def forward():
        with torch.no_grad():
            f(*inputs)

    def both():
        y, sT = f(*leaves)
        torch.autograd.backward([y, sT], [dy, dsT])
        for x in leaves:
            x.grad = None

    forward()
    if not differentiable:
        return {"forward": timer(forward, device)}
    both()
    return {"forward": timer(forward, device), "both": timer(both, device)}


def measure(args, shape, precision: str, peaks: dict, missing: dict) -> list[dict]:
    """The rows of one shape and precision."""
    dtype = DTYPES[precision]
    inputs = [x.to(args.device) for x in operands(*shape, dtype)]
    dy, dsT = torch.randn_like(inputs[0]), torch.randn_like(inputs[6])
    few = [x.double() for x in (*part(inputs, (6,)), dy[:1, :, :2], dsT[:1, :2])]
    exact = forward_backward(wkv7_loop, few[:7], *few[7:])
    rows, todo = [], {}
    for name, (f, differentiable) in implementations(args, shape, precision, missing).items():
        try:
            error = errors(operators.whole(f), differentiable, inputs, dy, dsT, exact)
            made = timers(f, differentiable, inputs, dy, dsT, args.device)
            if error[0] > WRONG:
                raise ValueError(f"it computes something else here (error of y {error[0]:.0e})")
        except (RuntimeError, ValueError, AssertionError) as e:  # of a peer that does not run here
            missing[f"{name} {shape} {precision}"] = (str(e).strip() or type(e).__name__).splitlines()[0]
            continue
        todo |= {(name, what): f for what, f in made.items()}
        rows.append(dict(key=[str(shape), precision, name], error_y=error[0], error_gradients=error[1]))
    times = measuring.rounds(todo, args.rounds, args.limit)
    for row in rows:
        name, ours = row["key"][2], rows[0]["key"][2]
        row["seconds"] = {what: times[n, what] for n, what in times if n == name}
        row["figures"] = {
            what: figures(t, times[ours, what], shape, dtype.itemsize, what == "both", peaks)
            for what, t in row["seconds"].items()
        }
    return rows


def figures(times: list, reference: list, shape, itemsize: int, backward: bool, peaks: dict) -> dict:
    middle = sorted(times)[len(times) // 2]
    flops, moved = cost(shape, itemsize, backward)
    gflops, gbs = flops / middle / 1e9, moved / middle / 1e9
    share = max(gflops / peaks["fp32_gflops"], gbs / peaks["copy_gbs"])
    return dict(ms=1e3 * middle, ratio=measuring.ratio(times, reference), gflops=gflops, gbs=gbs, share=share)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", metavar="B,T,H,N", type=lambda x: tuple(map(int, x.split(","))))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--ggml", default="", metavar="DIRECTORY", help="of libggml-base and libggml-cpu")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two records of one machine")
    args = parser.parse_args()
    if args.compare:
        return print(measuring.text(*measuring.compare(*args.compare)))
    if args.device == "cuda" and not torch.cuda.is_available():
        return print("not measured: no CUDA device")
    torch.set_num_threads(args.threads)
    known = SHAPES[args.device] if args.full or args.device == "cuda" else SHAPES["cpu"][:1]
    args.shapes = [args.shape] if args.shape else known
    args.rounds = args.rounds or (50 if args.device == "cuda" else 15 if args.full else 5)
    args.limit = 20.0 if args.full else 8.0  # seconds a shape and precision
    missing, rows, peaks = {}, [], measuring.peaks(args.device)
    for shape in args.shapes:
        for precision in ("fp32", "bf16") if args.device == "cpu" else ("bf16",):
            rows += measure(args, shape, precision, peaks, missing)
    record = measuring.record("wkv", wkv=wkv_cuda.describe(args.device), peaks=peaks, rows=rows, missing=missing)
    measuring.show(record)
    if args.json:
        run.write_json(args.json, record)


if __name__ == "__main__":
    run.cli(main)
