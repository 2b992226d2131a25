"""python tests/ptxas.py: compile every case of the CUDA kernels for every kind of card with nvcc, and fail when one
keeps anything in local memory or needs more than 168 registers (three blocks of 128 threads share a multiprocessor's).

Takes about a minute on two cores; prints why and succeeds where there is no nvcc.
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from wkv_cuda import chunked, sequential

ARCHITECTURES, REGISTERS = (80, 90, 100, 120), 168
KERNEL = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill.*?Used (\d+) registers", re.DOTALL
)


def cases():
    """(source, -D options) of everything that can be loaded."""
    for N, dtype in product(sequential.SIZES, (torch.float32, torch.bfloat16)):
        yield sequential.SOURCE, sequential.defines(N, dtype)
    for N in chunked.HEAD_SIZES:
        yield chunked.SOURCE, chunked.defines(N)


def compile_one(case) -> list[tuple[str, int, int]]:
    """-> (kernel and case, bytes in local memory, registers) of each kernel. SystemExit if nvcc complains."""
    (source, defines), arch = case
    options = [f"-D{k}={v}" for k, v in defines.items()]
    command = ["nvcc", "-cubin", "-std=c++17", f"-arch=sm_{arch}", "-Xptxas=-v", "-Werror=all-warnings", *options]
    result = subprocess.run([*command, "-o", "/dev/null", str(source)], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(result.args)}\n{result.stdout}{result.stderr}")
    label = f"sm_{arch} {' '.join(f'{k}={v}' for k, v in defines.items())}"
    return [(f"{name} {label}", int(a) + int(b), int(n)) for name, a, b, n in KERNEL.findall(result.stderr)]


def main() -> int:
    if not shutil.which("nvcc"):
        print("registers of CUDA kernels: skipped, no nvcc here")
        return 0
    with ThreadPoolExecutor() as pool:
        found = [kernel for kernels in pool.map(compile_one, product(cases(), ARCHITECTURES)) for kernel in kernels]
    bad = [f"{name}: {n} registers, {local} bytes local" for name, local, n in found if local or n > REGISTERS]
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"registers of CUDA kernels: {len(found)} compiled, at most {max(n for *_, n in found)}, {len(bad)} over")
    return bool(bad or not found)


if __name__ == "__main__":
    sys.exit(main())
