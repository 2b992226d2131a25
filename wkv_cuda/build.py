"""Compile the C++ of this directory at first use with whatever compiler is there, keep the library in a cache, load it.

No torch headers and no build system: a plain C interface and ctypes, some seconds. The file name in the cache is a
hash of sources, flags, compiler version and processor, so a change of any of them builds anew.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from common.files import cache_dir

FOLDER = Path(__file__).parent  # all *.cpp in it become one library
GNU = "-O3 -std=c++17 -shared -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -pthread"
# clang on some Arm machines knows only -mcpu, and a very old compiler neither; Apple's clang has no OpenMP
FLAG_SETS = [
    [*GNU.split(), *extra]
    for extra in (["-march=native", "-fopenmp"], ["-march=native"], ["-mcpu=native", "-fopenmp"], ["-mcpu=native"], [])
]
MSVC = ["/nologo", "/O2", "/std:c++17", "/EHsc", "/arch:AVX2", "/LD"]

SIGNATURES = {
    "wkv7_forward": "iinnnnpppppp",
    "wkv7_backward": "iinnnnppppppp",
    "decode_token": "ippnppp",
    "decode_huge_pages": "pn",
    "mix_forward": "iinnnnpppp",
    "mix_backward": "iinnnnppppppp",
    "operands_forward": "iinnnpppp",
    "operands_backward": "iinnnpppppp",
    "readout_forward": "iinnnfppp",
    "readout_backward": "iinnnfppppp",
    "relu_squared": "iinppp",
}


class BuildError(RuntimeError):
    """No compiler, or none that succeeded; the message holds each compiler's output."""


@dataclass
class Library:
    """The loaded functions, and what they were made with."""

    dll: ctypes.CDLL
    path: Path
    compiler: str
    flags: list[str]


def processor() -> str:
    """What -march=native depends on: model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        keys = ("model name", "flags", "Features", "CPU part")
        return " ".join(sorted({line for line in lines if line.startswith(keys)}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)


def compilers() -> list[str]:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    return [path for name in names if (path := shutil.which(name))]


def compile_once(compiler: str, flags: list[str], target: Path) -> str:
    """Make `target` unless it is there, safely against other processes -> "" or the compiler's complaint."""
    with FileLock(f"{target}.lock"):  # held by the operating system: a process that dies lets go of it
        if target.exists():
            return ""
        tmp = target.with_name(f"{os.getpid()}-{target.name}")
        is_msvc = Path(compiler).stem.lower() == "cl"
        output = [f"/Fe:{tmp}", f"/Fo:{tmp.parent}\\{os.getpid()}-"] if is_msvc else ["-o", str(tmp)]
        result = run([compiler, *flags, *map(str, sorted(FOLDER.glob("*.cpp"))), *output])
        if result.returncode == 0 and tmp.exists():
            os.replace(tmp, target)
        for rest in target.parent.glob(f"{os.getpid()}-*"):
            rest.unlink()
        return "" if target.exists() else f"{' '.join(result.args)}\n{result.stdout}{result.stderr}".strip()


def cache() -> Path:
    path = cache_dir() / "wkv"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="future-seed-wkv-"))


def load() -> Library:
    """The library, built if need be. Raises BuildError."""
    found, complaints, folder = compilers(), [], cache()
    sources = [p.read_text(encoding="utf-8") for p in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])]
    if not found:
        wanted = os.environ.get("CXX") or "c++, g++, clang++ or cl"
        raise BuildError(f"no C++ compiler ({wanted}) on PATH")
    suffix = ".dll" if sys.platform == "win32" else ".so"
    for compiler in found:
        is_msvc = Path(compiler).stem.lower() == "cl"
        version = "" if is_msvc else run([compiler, "--version"]).stdout.split("\n")[0]
        for flags in [MSVC] if is_msvc else FLAG_SETS:
            key = "\n".join([*sources, compiler, version, *flags, processor(), platform.platform()])
            target = folder / f"wkv7-{hashlib.sha256(key.encode()).hexdigest()[:24]}{suffix}"
            if complaint := compile_once(compiler, flags, target):
                complaints.append(complaint)
                continue
            try:
                return Library(declare(ctypes.CDLL(str(target))), target, version or compiler, flags)
            except (OSError, AttributeError) as e:
                complaints.append(f"{target} was compiled but can't be loaded: {e}")
    raise BuildError("\n".join(complaints))


def declare(dll: ctypes.CDLL) -> ctypes.CDLL:
    """i: int, n: 64-bit int, f: float, p: pointer. What a function returns is 0 on success."""
    kinds = {"i": ctypes.c_int, "n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
    for name, arguments in SIGNATURES.items():
        getattr(dll, name).argtypes = [kinds[c] for c in arguments]
    return dll
