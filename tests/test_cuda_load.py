"""Compiling CUDA kernels without a toolkit, keeping and loading them. Most of it needs no GPU."""

import contextlib
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from wkv_cuda import cuda
from wkv_cuda.__main__ import operands
from wkv_cuda.build import BuildError
from wkv_cuda.sequential import SOURCE, backward, defines, forward

FP32 = torch.float32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache ü"))
    monkeypatch.delenv("WKV_NVCC", raising=False)


@pytest.fixture
def nvrtc():
    try:
        cuda.nvrtc()
    except BuildError as e:
        pytest.skip(f"{e} (pip install nvidia-cuda-nvrtc)")


@pytest.fixture
def fresh():
    """What is found once a process is looked for anew."""
    cuda.nvrtc.cache_clear(), cuda.driver.cache_clear()
    yield
    cuda.nvrtc.cache_clear(), cuda.driver.cache_clear()


@pytest.fixture
def broken(tmp_path):
    """A source that no compiler accepts."""
    path = tmp_path / "broken.cu"
    path.write_text('extern "C" __global__ void f() { nonsense; }\n')
    return path


def test_nvrtc_compiles_once(nvrtc, monkeypatch):
    first = cuda.cubin(SOURCE, defines(16, FP32), "sm_90")
    assert first.read_bytes()[:4] == b"\x7fELF"
    assert first.name.startswith("wkv7-sm_90-")
    other = {cuda.cubin(SOURCE, defines(16, torch.bfloat16), "sm_90"), cuda.cubin(SOURCE, defines(16, FP32), "sm_80")}
    assert len(other | {first}) == 3
    monkeypatch.setattr(cuda, "compile_nvrtc", None)
    assert cuda.cubin(SOURCE, defines(16, FP32), "sm_90") == first
    assert {p.suffix for p in first.parent.iterdir()} == {".cubin", ".lock"}


def test_a_changed_header_compiles_anew(nvrtc, tmp_path):
    source, header = tmp_path / "k.cu", tmp_path / "k.cuh"
    source.write_text('#include "k.cuh"\nextern "C" __global__ void k(float* x) { x[0] = VALUE; }\n')
    names = set()
    for value in (1, 2, 1):
        header.write_text(f"#define VALUE {value}\n")
        names.add(cuda.cubin(source, {}, "sm_90"))
    assert len(names) == 2


def test_two_processes_compile_at_once(nvrtc, tmp_path):
    code = "from wkv_cuda import cuda, sequential as s; import torch\n"
    code += "print(cuda.cubin(s.SOURCE, s.defines(32, torch.float32), 'sm_90').stat().st_size)"
    start = lambda: subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    outputs = [p.communicate(timeout=60)[0] for p in [start(), start()]]
    assert outputs[0] == outputs[1] != ""
    assert len(list((tmp_path / "cache ü" / "future-seed" / "wkv").glob("*.cubin"))) == 1


def test_nvrtc_complains(nvrtc, broken):
    with pytest.raises(BuildError, match=r'(?s)compiling broken.cu with NVRTC .*"nonsense" is undefined'):
        cuda.cubin(broken, {}, "sm_90")
    with pytest.raises(BuildError, match=r"(?s)compiling wkv7.cu with NVRTC .*invalid value for --gpu-architecture"):
        cuda.cubin(SOURCE, defines(16, FP32), "sm_1")
    assert not list(cuda.cache().glob("*.cubin"))


@pytest.mark.skipif(not cuda.shutil.which("nvcc"), reason="no nvcc here")
def test_nvcc_when_asked_for(monkeypatch, broken):
    monkeypatch.setenv("WKV_NVCC", "1")
    monkeypatch.setattr(cuda, "nvrtc", None)
    assert cuda.cubin(SOURCE, defines(16, FP32), "sm_90").read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(BuildError, match=r'(?s)compiling broken.cu: .*nvcc.*"nonsense" is undefined'):
        cuda.cubin(broken, {}, "sm_90")


def test_nvcc_asked_for_but_absent(monkeypatch, tmp_path):
    for name, value in (("WKV_NVCC", "1"), ("PATH", str(tmp_path)), ("CUDA_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match="finding nvcc"):
        cuda.cubin(SOURCE, defines(16, FP32), "sm_90")


@pytest.mark.usefixtures("fresh")
def test_no_nvrtc_or_a_broken_one(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "nvrtc_files", list)
    with pytest.raises(BuildError, match="finding NVRTC"):
        cuda.cubin(SOURCE, defines(16, FP32), "sm_90")
    (tmp_path / "libnvrtc.so.12").write_text("not a library")
    monkeypatch.setattr(cuda, "nvrtc_files", lambda: [tmp_path / "libnvrtc.so.12"])
    with pytest.raises(BuildError, match=r"(?s)finding NVRTC.*libnvrtc.so.12"):
        cuda.nvrtc()


@pytest.mark.skipif(sys.platform == "win32", reason="names of Linux")
def test_torchs_own_nvrtc_comes_first(monkeypatch, tmp_path):
    (tmp_path / "lib64").mkdir()
    for name in (
        "libnvrtc.so.11.2",
        "libnvrtc.so.12",
        "libnvrtc.so.13",
        "libnvrtc-builtins.so.12",
        "libnvrtc.alt.so.12",
    ):
        (tmp_path / "lib64" / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    names = [p.name for p in cuda.nvrtc_files() if p.parent.parent == tmp_path]
    assert names == ["libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so.13"]


@pytest.mark.usefixtures("fresh")
def test_no_driver(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
    with pytest.raises(BuildError, match=r"loading the driver: .*cannot open"):
        cuda.driver()


class Driver:
    """Stands in for the driver: remembers the calls, and fails in one function if told to."""

    def __init__(self, failing=None):
        self.calls, self.failing = [], failing

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, args))
            if name == "cuGetErrorString":
                args[1]._obj.value = b"out of luck"
            if name in ("cuCtxGetCurrent", "cuModuleLoadData", "cuModuleGetFunction"):
                args[0]._obj.value = 1 + len(self.calls)
            return 999 if name == self.failing else 0

        return call

    def of(self, name):
        return [args for called, args in self.calls if called == name]


@pytest.fixture
def on_driver(monkeypatch, tmp_path):
    """f(driver) -> launch, of a machine that seems to have a GPU."""
    file = tmp_path / "k.cubin"
    file.write_bytes(b"cubin")
    pack = cuda.pack
    monkeypatch.setattr(cuda, "cubin", lambda source, defines, arch: file if arch == "sm_90" else None)
    monkeypatch.setattr(cuda, "pack", lambda args, device: pack(args, "cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=7))

    def use(driver):
        monkeypatch.setattr(cuda, "driver", lambda: driver)
        return cuda.launcher(SOURCE, {})

    return use


def test_launching(on_driver):
    driver, x = Driver(), torch.zeros(4)
    launch = on_driver(driver)
    for name, grid, shared in (("f", 5, 64), ("g", (2, 3), 0), ("f", (0, 2), 0), ("f", 1, 60_000), ("f", 1, 50_000)):
        launch(name, grid, 128, shared, [x, None, 3, 0.5])
    assert [args[1] for args in driver.of("cuModuleLoadData")] == [b"cubin"]
    assert [args[2] for args in driver.of("cuModuleGetFunction")] == [b"f", b"g"]
    assert [args[1:] for args in driver.of("cuFuncSetAttribute")] == [(8, 60_000)]
    launches = driver.of("cuLaunchKernel")
    assert [args[1:8] for args in launches] == [
        (5, 1, 1, 128, 1, 1, 64), (2, 3, 1, 128, 1, 1, 0), (1, 1, 1, 128, 1, 1, 60_000), (1, 1, 1, 128, 1, 1, 50_000)
    ]  # fmt: skip
    assert all(args[8].value == 7 for args in launches)
    assert launches[0][0].value != launches[1][0].value


@pytest.mark.parametrize(
    ("function", "step"),
    [
        ("cuCtxGetCurrent", "asking for the context"),
        ("cuModuleLoadData", "loading .*k.cubin"),
        ("cuModuleGetFunction", "finding f"),
        ("cuFuncSetAttribute", "asking for 99000 bytes of shared memory for f"),
        ("cuLaunchKernel", "launching f"),
    ],
)
def test_a_failing_step_is_named(on_driver, function, step):
    launch = on_driver(Driver(failing=function))
    with pytest.raises(BuildError, match=rf"{step}: {function}: out of luck \(999\)"):
        launch("f", 1, 32, 99_000, [torch.zeros(1)])


def test_arguments_that_a_kernel_cannot_take():
    with pytest.raises(ValueError, match=r"argument 1 is .*expected contiguous on cpu"):
        cuda.pack([1, torch.zeros(4, 4).T], "cpu")
    with pytest.raises(ValueError, match=r"argument 0 is .*on cpu, expected contiguous on cuda"):
        cuda.pack([torch.zeros(4)], "cuda")


# ---- with a GPU


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")


@pytest.mark.cuda
@pytest.mark.usefixtures("gpu")
def test_a_cuda_graph_records_both_directions():
    inputs = [x.cuda() for x in operands(2, 40, 2, 64, torch.bfloat16)]
    launch = cuda.launcher(SOURCE, defines(64, torch.bfloat16))

    def both():
        y, sT, checkpoints, sa = forward(launch, *inputs, True)
        return [y, sT, *backward(launch, *inputs[:6], checkpoints, sa, y, sT)]

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = both()
    inputs[0].mul_(0.5)  # the graph reads its inputs anew
    graph.replay()
    for x, want in zip(recorded, both(), strict=True):
        assert torch.equal(x, want)


@pytest.mark.cuda
@pytest.mark.usefixtures("gpu")
def test_a_thread_without_a_context_and_a_stream_of_its_own():
    inputs = [x.cuda() for x in operands(1, 9, 1, 64)]
    launch, results = cuda.launcher(SOURCE, defines(64, FP32)), []
    want = forward(launch, *inputs, False)[0]

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(forward(launch, *inputs, False)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert torch.equal(results[0], want)


@pytest.mark.cuda
@pytest.mark.usefixtures("gpu")
def test_the_nvrtc_of_torchs_wheels_is_found(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert cuda.nvrtc_files()
    assert cuda.cubin(SOURCE, defines(64, FP32), "sm_90").exists()
