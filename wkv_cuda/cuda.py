"""CUDA kernels without a CUDA toolkit: compile them with the NVRTC inside PyTorch's wheels, keep them, launch them.

A .cu file is compiled for one case (its -D options) and one card (sm_90 ...) at first use, in about a second; the cubin
goes into the user's cache under a hash of all that made it. WKV_NVCC=1 takes nvcc instead of NVRTC. Kernels are
launched on torch's current stream with the driver's API and without synchronisation, so CUDA graphs can record them.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch
from filelock import FileLock

from common.files import replacing
from wkv_cuda.build import BuildError, cache, run

MAX_DYNAMIC_SHARED = 8  # the driver's number for this attribute of a kernel

# ---- compiling


def nvrtc_files() -> list[Path]:
    """Where NVRTC may lie, best first: in PyTorch's wheels, in this environment, in an installed toolkit."""
    name = "nvrtc64_*.dll" if sys.platform == "win32" else "libnvrtc*.so*"
    spec = importlib.util.find_spec("nvidia")  # a namespace that the wheels of CUDA's parts share
    folders = [Path(torch.__file__).parent / "lib", *map(Path, (spec and spec.submodule_search_locations) or [])]
    folders += [Path(x) for x in (sys.prefix, os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if x]
    below = ("", "*/lib/", "*/bin/", "*/bin/x86_64/", "lib/", "lib64/", "bin/", "bin/x64/", "Library/bin/")
    found = [p for folder in folders for part in below for p in sorted(folder.glob(part + name))]
    found = [p for p in found if "builtins" not in p.name and ".alt." not in p.name]
    major = (torch.version.cuda or "?").split(".")[0]  # several may be installed: the driver is sure to know torch's
    return sorted(found, key=lambda p: f".so.{major}" not in p.name and f"64_{major}" not in p.name)


@functools.cache
def nvrtc() -> ctypes.CDLL:
    complaints = ["finding NVRTC: not in PyTorch's wheels, nor below CUDA_HOME"]
    for path in nvrtc_files():
        try:
            # NVRTC opens its built-ins by name, and need not look where they lie
            for part in path.parent.glob("*nvrtc-builtins*"):
                if ".alt." not in part.name:
                    ctypes.CDLL(str(part))
            lib = ctypes.CDLL(str(path))
            lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            return lib
        except OSError as e:
            complaints.append(str(e))
    raise BuildError("\n".join(complaints))


def call_nvrtc(function: str, *args) -> None:
    if code := getattr(nvrtc(), function)(*args):
        raise BuildError(f"{function}: {nvrtc().nvrtcGetErrorString(code).decode()}")


def fetch(what: str, program) -> bytes:
    size = ctypes.c_size_t()
    call_nvrtc(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call_nvrtc(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def compile_nvrtc(source: Path, headers: dict[str, str], options: list[str]) -> bytes:
    strings = lambda texts: (ctypes.c_char_p * len(texts))(*(t.encode() for t in texts))
    program, text = ctypes.c_void_p(), source.read_text(encoding="utf-8").encode()
    files = len(headers), strings(headers.values()), strings(headers)
    call_nvrtc("nvrtcCreateProgram", ctypes.byref(program), text, source.name.encode(), *files)
    try:
        call_nvrtc("nvrtcCompileProgram", program, len(options), strings(options))
        return fetch("CUBIN", program)
    except BuildError as e:
        log = fetch("ProgramLog", program).decode(errors="replace").rstrip("\0\n")
        raise BuildError(f"compiling {source.name} with NVRTC ({' '.join(options)}): {e}\n{log}") from None
    finally:
        nvrtc().nvrtcDestroyProgram(ctypes.byref(program))


def nvcc() -> str:
    path = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(os.environ.get("CUDA_HOME", ""), "bin")))
    if not path:
        raise BuildError("finding nvcc: WKV_NVCC is set, but nvcc is neither on PATH nor below CUDA_HOME")
    return path


def compile_nvcc(source: Path, options: list[str], target: Path) -> None:
    result = run([nvcc(), "-cubin", f"-I{source.parent}", *options, "-o", str(target), str(source)])
    if result.returncode:
        raise BuildError(f"compiling {source.name}: {' '.join(result.args)}\n{result.stdout}{result.stderr}".strip())


def cubin(source: Path, defines: dict[str, int], arch: str) -> Path:
    """The compiled kernels of `source` for `arch` ("sm_90"), made if need be, safely against other processes."""
    use_nvcc = os.environ.get("WKV_NVCC", "") not in ("", "0")
    headers = {p.name: p.read_text(encoding="utf-8") for p in sorted(source.parent.glob("*.cuh"))}
    options = ["--std=c++17", f"--gpu-architecture={arch}", *(f"-D{k}={v}" for k, v in sorted(defines.items()))]
    if use_nvcc:
        compiler = run([nvcc(), "--version"]).stdout
    else:
        major, minor = ctypes.c_int(), ctypes.c_int()
        call_nvrtc("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        compiler = f"NVRTC {major.value}.{minor.value}"
    key = "\n".join([source.read_text(encoding="utf-8"), *headers, *headers.values(), *options, compiler])
    target = cache() / f"{source.stem}-{arch}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with replacing(target) as tmp:
                if use_nvcc:
                    compile_nvcc(source, options, tmp)
                else:
                    tmp.write_bytes(compile_nvrtc(source, headers, options))
    return target


# ---- launching


@functools.cache
def driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as e:
        raise BuildError(f"loading the driver: {e}") from e


def call_driver(step: str, function: str, *args) -> None:
    if code := getattr(driver(), function)(*args):
        text = ctypes.c_char_p()
        driver().cuGetErrorString(code, ctypes.byref(text))
        raise BuildError(f"{step}: {function}: {(text.value or b'unknown error').decode()} ({code})")


def pack(args, device: str):
    """Arguments as the driver wants them: the address of each -> (array of addresses, what they point to).

    A tensor becomes its address, None a null pointer, an int an i64 and a float a float.
    """
    values = []
    for i, x in enumerate(args):
        if isinstance(x, torch.Tensor):
            if x.device.type != device or not x.is_contiguous():
                raise ValueError(f"argument {i} is {tuple(x.shape)} on {x.device}, expected contiguous on {device}")
            values.append(ctypes.c_void_p(x.data_ptr()))
        elif x is None:
            values.append(ctypes.c_void_p())
        else:
            values.append(ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int64(x))
    return (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)), values


def aligned(x: torch.Tensor | None) -> torch.Tensor | None:
    """x, or a copy: contiguous, and at a multiple of 16 bytes as loads of 16 bytes need."""
    if x is None or (x.is_contiguous() and x.data_ptr() % 16 == 0):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def sizes(n) -> tuple[int, int, int]:
    """A grid or block given as an int or a tuple of up to three, as three."""
    n = (n,) if isinstance(n, int) else tuple(n)
    return *n, *(1,) * (3 - len(n))


def use_context(index: int) -> None:
    """Make torch's context current: in a thread of autograd's it may not be yet."""
    context, device = ctypes.c_void_p(), ctypes.c_int()
    call_driver("asking for the context", "cuCtxGetCurrent", ctypes.byref(context))
    if not context:
        call_driver("finding the device", "cuDeviceGet", ctypes.byref(device), index)
        call_driver("making a context", "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        call_driver("choosing the context", "cuCtxSetCurrent", context)


def launcher(source: Path, defines: dict[str, int]):
    """-> launch(name, grid, block, shared_bytes, args): start a kernel on its tensors' device and current stream.

    grid, block: numbers or tuples; shared_bytes: dynamic shared memory; args as in pack(), one CUDA tensor at least.
    The first launch on a device compiles and loads (do one before recording a CUDA graph). Raises BuildError, which
    names the step that failed.
    """
    granted = {}  # bytes of shared memory, by kernel and device; more than 48 KiB have to be asked for

    @functools.cache
    def module(index: int) -> ctypes.c_void_p:
        major, minor = torch.cuda.get_device_capability(index)
        path, module = cubin(source, defines, f"sm_{major}{minor}"), ctypes.c_void_p()
        call_driver(f"loading {path}", "cuModuleLoadData", ctypes.byref(module), path.read_bytes())
        return module

    @functools.cache
    def kernel(name: str, index: int) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        call_driver(f"finding {name}", "cuModuleGetFunction", ctypes.byref(function), module(index), name.encode())
        return function

    def launch(name, grid, block, shared_bytes, args):
        if 0 in sizes(grid):
            return
        pointers, _keep = pack(args, "cuda")
        index = next(x.device.index for x in args if isinstance(x, torch.Tensor))
        with torch.cuda.device(index):
            use_context(index)
            function = kernel(name, index)
            if shared_bytes > granted.get((name, index), 48 << 10):
                step = f"asking for {shared_bytes} bytes of shared memory for {name}"
                call_driver(step, "cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared_bytes)
                granted[name, index] = shared_bytes
            stream = ctypes.c_void_p(torch.cuda.current_stream(index).cuda_stream)
            where = *sizes(grid), *sizes(block), shared_bytes, stream
            call_driver(f"launching {name}", "cuLaunchKernel", function, *where, pointers, None)

    return launch
