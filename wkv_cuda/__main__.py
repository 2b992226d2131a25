"""python -m wkv_cuda: build the operator, test it against fp64, and print everything that a bug report needs."""

import os
import platform
import sys
import time

import torch

import wkv_cuda
from common.errors import UserError
from wkv_cuda import cpp
from wkv_cuda.reference import wkv7_loop

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # relative to the largest value; bf16 operands carry 8 bits


def operands(B: int, T: int, H: int, N: int, dtype=torch.float32) -> list[torch.Tensor]:
    """r w k v a b s0 as a model makes them: decays in (0.545, 1), a unit removal key."""
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=g)
    r, k, v = (rand(B, T, H, N) for _ in range(3))
    w = -torch.nn.functional.softplus(rand(B, T, H, N)) - 0.5
    kk = torch.nn.functional.normalize(rand(B, T, H, N), dim=-1)
    b = kk * torch.sigmoid(rand(B, T, H, N))
    return [x.to(dtype) for x in (r, w, k, v, -kk, b)] + [rand(B, H, N, N)]


def run(f, inputs, dy, dsT):
    """y, sT and the gradients of all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, sT = f(*leaves)
    torch.autograd.backward([y, sT], [dy.to(y.dtype), dsT.to(sT.dtype)])
    return [y.detach(), sT.detach(), *(x.grad for x in leaves)]


def errors(f, B, T, H, N, dtype=torch.float32, device="cpu") -> dict[str, float]:
    """Largest error of each result against the fp64 loop, relative to its largest value."""
    inputs = operands(B, T, H, N, dtype)
    dy, dsT = torch.randn(B, T, H, N).to(dtype), torch.randn(B, H, N, N)
    exact = run(wkv7_loop, [x.double() for x in inputs], dy, dsT)
    names = ("y", "sT", "dr", "dw", "dk", "dv", "da", "db", "ds0")
    got = [x.cpu() for x in run(f, [x.to(device) for x in inputs], dy.to(device), dsT.to(device))]
    return {n: ((x - e).abs().max() / e.abs().max()).item() for n, x, e in zip(names, got, exact, strict=True)}


def milliseconds(f, device: str, repeats: int = 7) -> float:
    """Median time of f()."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        f()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2] * 1e3


def self_test(device: str) -> bool:
    """Print what runs on a type of device, its errors and its speed -> whether the errors are small enough."""
    print(f"\nbackend   {device}: {wkv_cuda.describe(device)}")
    if wkv_cuda.backend(device) == "cpp":
        library = cpp.library()
        print(f"compiler  {library.compiler}\nflags     {' '.join(library.flags)}\nlibrary   {library.path}")
    ok = True
    for shape in ((2, 70, 3, 64), (1, 1, 1, 64), (2, 33, 2, 20)):
        for dtype in (torch.float32, torch.bfloat16):
            found = errors(wkv_cuda.wkv7, *shape, dtype, device)
            good = max(found.values()) < TOLERANCE[dtype]
            ok &= good
            text = " ".join(f"{n} {e:.0e}" for n, e in found.items())
            print(f"error     {shape} {str(dtype).removeprefix('torch.'):8} {text}  {'ok' if good else 'WRONG'}")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = [x.to(device) for x in operands(2, 512, 12, 64, dtype)]
    dy, dsT = torch.randn(2, 512, 12, 64, device=device), torch.randn(2, 12, 64, 64, device=device)
    with torch.no_grad():
        forward = milliseconds(lambda: wkv_cuda.wkv7(*inputs), device)
    both = milliseconds(lambda: run(wkv_cuda.wkv7, inputs, dy, dsT), device)
    print(f"speed     (2, 512, 12, 64) {dtype}: forward {forward:.1f} ms, with backward {both:.1f} ms")
    return ok


def main() -> int:
    print(f"system    {platform.platform()}, python {platform.python_version()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    forced = os.environ.get("WKV_BACKEND", "")
    devices = ["cuda"] if forced == "cuda" else ["cpu"]
    if torch.cuda.is_available() and forced not in ("cuda", "cpp"):
        devices.append("cuda")
    ok = min([self_test(device) for device in devices])  # all of them, whatever the first one says
    print("\nself-test passed" if ok else "\nself-test FAILED: please report all of this")
    return not ok


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f"error: {e}")
