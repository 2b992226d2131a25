"""What machine is at hand, and getting the best out of it where torch leaves something on the table."""

import ctypes
import math
import platform
import sys
import time
from pathlib import Path

import torch

from common import dist

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else ()
    names = (x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the system; elsewhere, do nothing.

    A training step frees and takes gigabytes. From the system they come as pages that have to be cleared one by one,
    which for the gradient of a vocabulary of 65,536 takes longer than computing it. The peak grows by a tenth.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**26)):
        libc.mallopt(option, value)


def multiply_at_full_width() -> None:
    """Have oneDNN instead of MKL multiply fp32 matrices on AMD processors with AVX-512; elsewhere, do nothing.

    MKL uses half of their vectors. torch asks oneDNN only if that may round to bf16 on the way, as it does where there
    is hardware for it (AMX): the check is a product that would come out wrong. No clock decides, so that runs repeat.
    """
    if "AMD" not in processor_name() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    setting = torch.backends.mkldnn.matmul
    setting.fp32_precision = "bf16"
    just_over_one = torch.full((256, 256), 1 + 2**-12)  # 1 in bf16
    if (just_over_one @ torch.ones(256, 256) != 256 * (1 + 2**-12)).any():
        setting.fp32_precision = "none"


def at_its_best() -> None:
    """Both of the above: for scripts, when they start."""
    keep_freed_memory()
    multiply_at_full_width()


def faster_dtype(device: torch.device) -> str:
    """ "bfloat16" where its matrix products are clearly faster than those of "float32"; measured, printed, some ms."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(512, 768, dtype=dtype, device=device), torch.ones(768, 768, dtype=dtype, device=device)
        for _ in range(5):  # the first ones wake up threads, and other programs only ever make it slower
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            (x @ w)[0, 0].item()
            times[dtype] = min(times.get(dtype, math.inf), time.perf_counter() - start)
    speedup = times[torch.float32] / times[torch.bfloat16]
    chosen = "bfloat16" if dist.any_of(speedup > 1.3, device) else "float32"
    print(f"dtype=auto: {chosen}; a matrix product in bfloat16 is {speedup:.1f} times as fast as in float32 here")
    return chosen
