"""Shared by all tests: where the real data lies (optional), and small random models."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of scripts run by tests: on small problems threads only wait
torch.set_num_threads(1)
os.environ.setdefault("RWKV_V7_ON", "1")  # the pip package `rwkv`, our oracle, reads these when it is imported
os.environ.setdefault("RWKV_JIT_ON", "0")
os.environ.setdefault("RWKV_CUDA_ON", "0")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def data():
    """Path of a file below ../shared/data; skips the test where it is absent."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"real data not here: {DATA / name}")
        return DATA / name

    return find


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script in this process -> (its last message if it failed, or None, what it printed)."""

    def run(*args, name="train_sft.py"):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
            error = None
        except SystemExit as e:
            error = None if e.code in (0, None) else str(e.code)
        return error, capsys.readouterr().out

    return run


TINY = """
task = "infill"
task_args = {"n_digits": 3}
tokenizer = "chars:0123456789LMR=|_#"
n_layer = 2
n_embd = 32
head_size = 16
n_train = 400
n_val = 12
bsz = 4
max_steps = 6
eval_every = 3
save_every = 2
log_every = 1
n_show = 1
lr = 1e-3
"""


@pytest.fixture
def tiny(tmp_path):
    """Path of a config whose runs take a second."""
    (tmp_path / "tiny.py").write_text(TINY + f"out_dir = {str(tmp_path / 'out')!r}\n")
    return tmp_path / "tiny.py"


def assert_one_sentence(error: str | None, words: list[str]) -> None:
    """A script's last message is an error in one line that says all these words."""
    assert error, "it should have failed"
    assert error.startswith("error: ")
    assert "\n" not in error
    assert all(w in error for w in words), error


def random_model(n_layer=3, n_embd=128, vocab_size=50, head_size=64, seed=0, **sizes):
    """A model none of whose parameters is at a special value, so that every term of the equations counts."""
    from model import RWKV7, RWKVConfig

    torch.manual_seed(seed)
    net = RWKV7(RWKVConfig(n_layer, n_embd, vocab_size, head_size, **sizes)).init_weights()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net
