"""The operator: every form against the fp64 loop, its gradients, its registration with torch, and its building."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import wkv_cuda
from common.errors import UserError
from conftest import ROOT
from wkv_cuda.__main__ import operands, run
from wkv_cuda.reference import wkv7_chunked, wkv7_loop

NAMES = ("y", "sT", "dr", "dw", "dk", "dv", "da", "db", "ds0")
needs_cpp = pytest.mark.skipif(wkv_cuda.backend() != "cpp", reason=f"no C++ here: {wkv_cuda.describe()}")
FORMS = [
    pytest.param(wkv_cuda.wkv7, id="cpp", marks=needs_cpp),
    pytest.param(wkv7_chunked, id="torch"),
    pytest.param(wkv7_loop, id="reference"),
]


def assert_exact(f, inputs, tolerance=2e-6):
    """Results and all gradients of f equal the fp64 loop's, relative to the largest value of each."""
    B, T, H, N = inputs[0].shape
    g = torch.Generator().manual_seed(1)
    dy, dsT = torch.randn(B, T, H, N, generator=g).to(inputs[0].dtype), torch.randn(B, H, N, N, generator=g)
    got, exact = run(f, inputs, dy, dsT), run(wkv7_loop, [x.double() for x in inputs], dy.double(), dsT.double())
    for name, x, e in zip(NAMES, got, exact, strict=True):
        assert x.shape == e.shape, name
        assert x.isfinite().all(), name
        if e.numel():
            error = (x - e).abs().max() / e.abs().max().clamp(min=1e-30)
            assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("f", FORMS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 64), (2, 33, 3, 64), (1, 70, 1, 20), (2, 17, 2, 32), (1, 40, 1, 128), (2, 64, 1, 16)]
)
def test_against_fp64(f, shape):
    assert_exact(f, operands(*shape))


@pytest.mark.parametrize("f", FORMS)
def test_no_steps_at_all(f):
    *ops, s0 = operands(2, 0, 2, 64)
    s0.requires_grad_()
    y, sT = f(*ops, s0)
    assert y.shape == (2, 0, 2, 64)
    assert torch.equal(sT, s0)
    sT.sum().backward()
    assert torch.equal(s0.grad, torch.ones_like(s0))


@pytest.mark.parametrize("f", FORMS)
@pytest.mark.parametrize("w", [0.0, -0.5, -20.0])
def test_decays_from_strong_to_none(f, w):
    r, _, k, v, a, b, s0 = operands(1, 50, 2, 64)
    assert_exact(f, [r, torch.full_like(r, w), k, v, a, b, s0], tolerance=5e-6)


@needs_cpp
def test_cpp_has_no_lower_bound_on_the_decay():
    r, w, k, v, a, b, s0 = operands(1, 50, 1, 64)
    assert_exact(wkv_cuda.wkv7, [r, 2 + 4 * w.sigmoid(), k, v, a, b, s0])


@pytest.mark.parametrize("f", FORMS)
def test_bfloat16(f):
    assert_exact(f, operands(2, 40, 2, 64, torch.bfloat16), tolerance=1e-2)
    y, sT = f(*operands(1, 5, 1, 64, torch.bfloat16))
    assert (y.dtype, sT.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("f", [wkv7_loop, wkv7_chunked])
def test_gradcheck(f):
    inputs = [x.double().requires_grad_() for x in operands(1, 5, 2, 3)]
    assert torch.autograd.gradcheck(f, inputs)
    longer = [x.double().requires_grad_() for x in operands(1, 19, 1, 2)]
    assert torch.autograd.gradcheck(f, longer)


@pytest.mark.parametrize("f", FORMS)
def test_identity_steps_leave_no_trace(f):
    inputs = operands(2, 12, 2, 64)
    for x, value in zip(inputs[:6], (1.0, -torch.inf, 0, 0, 0, 0), strict=True):
        x[:, :7] = value
    dy, dsT = torch.randn(2, 12, 2, 64), torch.randn(2, 2, 64, 64)
    dy[:, :7] = 0
    y, sT, dr, dw, dk, dv, da, db, ds0 = run(f, inputs, dy, dsT)
    short = run(f, [x[:, 7:] for x in inputs[:6]] + inputs[6:], dy[:, 7:], dsT)
    for got, want in zip((y, dr, dw, dk, dv, da, db), (short[0], *short[2:8]), strict=True):
        torch.testing.assert_close(got[:, 7:], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sT, short[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ds0, short[8], rtol=1e-5, atol=1e-5)
    assert not dw[:, :7].any()
    assert all(t.isfinite().all() for t in (y, dr, dw, dk, dv, da, db))


@pytest.mark.parametrize("f", FORMS)
def test_split_anywhere_is_one_pass(f):
    *ops, s0 = operands(2, 50, 2, 64)
    y, sT = f(*ops, s0)
    for cut in (0, 1, 32, 33, 50):
        y1, s1 = f(*(x[:, :cut] for x in ops), s0)
        y2, s2 = f(*(x[:, cut:] for x in ops), s1)
        torch.testing.assert_close(torch.cat([y1, y2], 1), y, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(s2, sT, rtol=1e-5, atol=1e-4)


@needs_cpp
def test_non_contiguous_and_optional_inputs():
    *ops, s0 = operands(2, 20, 2, 64)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in ops]
    assert not strided[0].is_contiguous()
    dy, dsT = torch.randn(2, 2, 20, 64).transpose(1, 2), torch.randn(2, 2, 64, 64).mT
    for got, want in zip(
        run(wkv_cuda.wkv7, [*strided, s0.mT], dy, dsT), run(wkv7_loop, [*ops, s0.mT], dy, dsT), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wkv_cuda.wkv7(*ops)[0], wkv7_loop(*ops, torch.zeros_like(s0))[0], rtol=1e-4, atol=1e-4)
    # gradients of the parts that are asked for, from the parts that have one
    leaf = s0.clone().requires_grad_()
    wkv_cuda.wkv7(*ops, leaf)[1].sum().backward()
    want = s0.clone().requires_grad_()
    wkv7_loop(*ops, want)[1].sum().backward()
    torch.testing.assert_close(leaf.grad, want.grad, rtol=1e-4, atol=1e-4)
    v = ops[3].clone().requires_grad_()
    wkv_cuda.wkv7(*ops[:3], v, *ops[4:])[0].sum().backward()
    assert v.grad.abs().sum() > 0


@needs_cpp
def test_the_same_bits_with_any_number_of_threads():
    inputs, dy, dsT = operands(2, 90, 3, 64), torch.randn(2, 90, 3, 64), torch.randn(2, 3, 64, 64)
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5, 1):
            torch.set_num_threads(n)
            results.append(run(wkv_cuda.wkv7, inputs, dy, dsT))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs_cpp
@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    T, H, N = 2**26 + 1000, 2, 16  # 2**31 + 32000 elements, 4.3 GB
    x = (torch.rand(1, 1000, H, N) - 0.6).to(torch.bfloat16)  # decays, and state that does not blow up
    x = x.repeat(1, -(-T // 1000), 1, 1)[:, :T].contiguous()
    assert x.numel() > 2**31
    y, sT = wkv_cuda.wkv7(x, x, x, x, x, x)
    y = y[:, -64:].clone()
    s = wkv_cuda.wkv7(*[x[:, :-64]] * 6)[1]
    y_tail, sT_tail = wkv_cuda.wkv7(*[x[:, -64:]] * 6, s)
    assert y_tail.abs().max() > 0
    assert torch.equal(y, y_tail)
    assert torch.equal(sT, sT_tail)


def test_head_sizes_beyond_cpp_take_the_torch_form():
    inputs = operands(1, 6, 1, 200)
    torch.testing.assert_close(wkv_cuda.wkv7(*inputs)[0], wkv7_loop(*inputs)[0], rtol=1e-4, atol=1e-4)


@needs_cpp
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad):
    inputs = [x.requires_grad_(grad) for x in operands(1, 5, 2, 16)]
    torch.library.opcheck(torch.ops.future_seed.wkv7, (*inputs, grad))
    torch.library.opcheck(torch.ops.future_seed.wkv7, (*inputs[:6], None, grad))


@needs_cpp
def test_compile_without_graph_breaks():
    inputs, dy, dsT = operands(1, 20, 2, 16), torch.randn(1, 20, 2, 16), torch.randn(1, 2, 16, 16)
    compiled = torch.compile(lambda *x: wkv_cuda.wkv7(*x), fullgraph=True, backend="aot_eager")
    for got, want in zip(run(compiled, inputs, dy, dsT), run(wkv_cuda.wkv7, inputs, dy, dsT), strict=True):
        torch.testing.assert_close(got, want)


@needs_cpp
def test_double_backward_is_refused():
    inputs = [x.requires_grad_() for x in operands(1, 4, 1, 16)]
    (grad,) = torch.autograd.grad(wkv_cuda.wkv7(*inputs)[0].square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_operands_that_do_not_fit():
    *ops, s0 = operands(1, 4, 1, 16)
    with pytest.raises(UserError, match=r"k is \(1, 3, 1, 16\)"):
        wkv_cuda.wkv7(*ops[:2], ops[2][:, :3], *ops[3:])
    with pytest.raises(UserError, match=r"s0 is \(1, 1, 16, 8\)"):
        wkv_cuda.wkv7(*ops, s0[..., :8])
    with pytest.raises(UserError, match="float16"):
        wkv_cuda.wkv7(*(x.half() for x in ops))
    with pytest.raises(UserError, match=r"\(B, T, H, N\)"):
        wkv_cuda.wkv7(*(x[0] for x in ops))


# ---- building: each in a fresh process with a cache of its own

USE = """
import torch, wkv_cuda
from wkv_cuda.__main__ import errors
assert max(errors(wkv_cuda.wkv7, 1, 9, 2, 16).values()) < 2e-6
print(wkv_cuda.backend())
"""


def python(code_or_module, cache, wait=True, **env):
    args = [sys.executable, *(["-m", "wkv_cuda"] if code_or_module == "wkv_cuda" else ["-c", code_or_module])]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONIOENCODING": "utf-8", **env}
    process = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err.strip()


def hasty(folder):
    """Environment of a compiler that does not optimise: four times as quick where only the building is tested."""
    real = shutil.which(os.environ.get("CXX") or "c++")
    if os.name == "nt" or real is None:
        return {}
    path = folder / "hasty-c++"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(real)} "$@" -O0\n')
    path.chmod(0o755)
    return dict(CXX=str(path))


@needs_cpp
def test_two_processes_build_at_once_in_a_path_with_spaces(tmp_path):
    cache = tmp_path / "mit Leerzeichen ü"
    both = [python(USE, cache, wait=False, **hasty(tmp_path)) for _ in range(2)]
    for p in both:
        out, err = p.communicate(timeout=120)
        assert (p.returncode, out.strip()) == (0, "cpp"), err
    names = [p.name for p in (cache / "future-seed" / "wkv").iterdir()]
    assert len([n for n in names if n.endswith(".so")]) == 1
    assert all(n.endswith((".so", ".so.lock")) for n in names)


def test_without_a_compiler_the_torch_form_runs_and_says_why(tmp_path):
    code, out, err = python(USE, tmp_path, PATH=str(tmp_path), CXX="")
    assert (code, out) == (0, "torch"), err
    assert len(err.splitlines()) == 1
    assert "no C++ compiler" in err


@pytest.mark.skipif(os.name == "nt", reason="a shell script as compiler")
def test_a_failing_compiler(tmp_path):
    bad = tmp_path / "bad-c++"
    bad.write_text("#!/bin/sh\necho something is broken here >&2\nexit 1\n")
    bad.chmod(0o755)
    code, out, err = python(USE, tmp_path, CXX=str(bad))
    assert (code, out) == (0, "torch")
    assert len(err.splitlines()) == 1
    code, out, err = python("wkv_cuda", tmp_path, CXX=str(bad), WKV_BACKEND="cpp")
    assert code == 1
    assert "something is broken here" in err
    assert "Traceback" not in err


@needs_cpp
def test_a_dead_process_does_not_hold_the_lock(tmp_path):
    hold = "import filelock, sys, time; filelock.FileLock(sys.argv[1]).acquire(); print(1, flush=True); time.sleep(99)"
    env = hasty(tmp_path)
    assert python(USE, tmp_path, **env)[0] == 0
    folder = tmp_path / "future-seed" / "wkv"
    (library,) = folder.glob("*.so")
    library.unlink()
    holder = subprocess.Popen([sys.executable, "-c", hold, f"{library}.lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "1"
    waiting = python(USE, tmp_path, wait=False, **env)
    time.sleep(1)
    assert waiting.poll() is None, "it should have waited for the lock"
    holder.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    out, err = waiting.communicate(timeout=120)
    assert out.strip() == "cpp", err


@needs_cpp
def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert python(USE, tmp_path / "file", TMPDIR=str(tmp_path), **hasty(tmp_path))[:2] == (0, "cpp")


@needs_cpp
def test_a_library_that_computes_something_else_is_refused(tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(ROOT / "wkv_cuda", sources)
    right = (sources / "wkv7.cpp").read_text()
    (sources / "wkv7.cpp").write_text(right.replace("NEXT[q] += x * A;", ""))
    patch = f"import wkv_cuda.build as b, pathlib; b.FOLDER = pathlib.Path({str(sources)!r})\n"
    code, out, err = python(patch + USE, tmp_path, **hasty(tmp_path))
    assert (code, out) == (0, "torch"), err
    assert "wrong results" in err


def test_forcing_a_backend(tmp_path):
    assert python(USE, tmp_path, WKV_BACKEND="reference")[1] == "reference"
    for name in ("cuda", "fast"):
        code, _, err = python("wkv_cuda", tmp_path, WKV_BACKEND=name)
        assert code == 1
        assert f"WKV_BACKEND={name}" in err
        assert len(err.splitlines()) == 1


def test_the_report_for_bug_reports():
    result = subprocess.run([sys.executable, "-m", "wkv_cuda"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ("backend", "torch", "error", "speed", "self-test passed"):
        assert word in result.stdout
