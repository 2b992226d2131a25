"""Run the CUDA kernels' own source on the CPU: compile a .cu file with g++ through cuda_host.h, launch its kernels.

    launch = launcher(ROOT / "wkv_cuda" / "wkv7.cu", {"N": 64, "BF16": 1})
    launch("name", grid, block, shared_bytes, args)     # as wkv_cuda.cuda's, on CPU tensors

Kernels are the functions declared `extern "C" __global__ void [__launch_bounds__(..)] name(..)`.
"""

import ctypes
import functools
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from wkv_cuda.cuda import pack, sizes

SHIM = Path(__file__).with_name("cuda_host.h")
INCLUDE = Path(__file__).resolve().parents[1] / "wkv_cuda"
FLAGS = ["-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"]
FLAGS += ["-U_FORTIFY_SOURCE"]  # with it longjmp refuses to change stacks, which is how fibers take turns
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-clobbered"]
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^{;]*?\)\s*)?(\w+)\s*\(')


class KernelError(RuntimeError):
    """What would be undefined on a GPU, such as a divergent barrier."""


def launcher(source: Path, defines: dict | None = None, descending: bool = False):
    """-> launch(name, grid, block, shared_bytes, args). Skips the test without g++.

    descending: let a block's threads run in the opposite order, last first; a result that differs shows a race.
    Raises AssertionError with the compiler's output; launch raises KernelError.
    """
    dll = library(Path(source), tuple(sorted((defines or {}).items())))

    def launch(name, grid, block, shared_bytes, args):
        function = getattr(dll, f"host_{name}")
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool]
        function.restype = ctypes.c_char_p
        pointers, _keep = pack(args, "cpu")
        extent = (ctypes.c_uint * 6)(*sizes(grid), *sizes(block))
        if error := function(pointers, extent, shared_bytes, descending):
            raise KernelError(f"{name}: {error.decode()}")

    return launch


@functools.cache
def library(source: Path, defines: tuple) -> ctypes.CDLL:
    if not (compiler := shutil.which("g++")):
        pytest.skip("no g++ to run CUDA kernels on the CPU")
    text = source.read_text(encoding="utf-8")
    names = KERNEL.findall(text)
    main = f'#include "{SHIM}"\n#include "{source.resolve()}"\n' + "".join(f"KERNEL_ON_HOST({n})\n" for n in names)
    flags = [*FLAGS, f"-I{INCLUDE}", *(f"-D{k}={v}" for k, v in defines)]
    parts = [main, text, SHIM.read_text(encoding="utf-8"), *flags]
    parts += [p.read_text(encoding="utf-8") for p in sorted({*INCLUDE.glob("*.cuh"), *source.parent.glob("*.cuh")})]
    folder = Path(tempfile.gettempdir()) / f"future-seed-host-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{source.stem}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:24]}.so"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            tmp = target.with_suffix(f".{os.getpid()}.so")
            command = [compiler, "-x", "c++", "-", *flags, "-o", str(tmp)]
            result = subprocess.run(command, input=main, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            os.replace(tmp, target)
    return ctypes.CDLL(str(target))
