"""train_sft.py as its users run it: records, comparison, resume, interruption, several processes, bad input."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from conftest import ROOT, assert_one_sentence, random_model


def command(*args):
    return [sys.executable, "train_sft.py", *map(str, args)]


def rows(run_dir, kind="train", drop=("seconds", "memory_gib")):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [r for r in map(json.loads, lines) if r["kind"] == kind]
    return [{k: v for k, v in r.items() if k not in drop} for r in kept]


def only(path):
    (found,) = path.iterdir()
    return found


def test_a_run_leaves_a_complete_record(tiny, script):
    error, out = script(tiny)
    assert error is None
    run = only(tiny.parent / "out")
    assert run.name.startswith("tiny-")
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["max_steps"] == 6
    assert config["config"]["bsz"] == 4
    assert len(config["val_hash"]) == 64
    assert config["torch"] == torch.__version__
    assert [r["step"] for r in rows(run)] == [1, 2, 3, 4, 5, 6]
    evals = rows(run, "eval")
    assert [r["step"] for r in evals] == [0, 3, 6]
    assert {"loss", "token_accuracy", "accuracy", "exact", "gate"} <= set(evals[-1])
    assert {p.name for p in (run / "last").iterdir()} == {"model.pth", "seed.pt", "trainer.pt"}
    assert {p.name for p in (run / "best").iterdir()} == {"model.pth", "seed.pt"}
    assert (run / "curve.png").read_bytes()[:4] == b"\x89PNG"
    log = (run / "log.txt").read_text()
    assert "class RWKV7" in log, "the log must hold the source that was run"
    assert "step 6/6" in out
    assert "causal ceiling 0.1" in out
    assert out.splitlines()[-1] == f"wrote {run}"


def test_compare_trains_both_arms_on_the_same_batches(tiny, script):
    error, out = script(tiny, "--compare=True")
    assert error is None
    run = only(tiny.parent / "out")
    off, on = rows(run / "off"), rows(run / "on")
    assert [r["tokens"] for r in off] == [r["tokens"] for r in on]
    result = json.loads((run / "compare.json").read_text())
    assert set(result["on"]["controls"]) == {"no seed", "another row's seed", "a random seed"}
    assert not (run / "off" / "last" / "seed.pt").exists()
    line = next(x for x in out.splitlines() if x.startswith("accuracy "))
    difference = result["on"]["accuracy"] - result["off"]["accuracy"]
    assert f"{difference:+.4f}" in line
    # the arms start from the same weights: closing the gate makes them equal
    error, _ = script(tiny, "--compare", "--fs_seed_scale=0.0", f"--out_dir={tiny.parent / 'closed'}")
    closed = only(tiny.parent / "closed")
    assert [r["loss"] for r in rows(closed / "off")] == [r["loss"] for r in rows(closed / "on")]
    assert [r["loss"] for r in off] == [r["loss"] for r in rows(closed / "off")]
    assert [r["loss"] for r in off] != [r["loss"] for r in on]


def test_kill_and_resume_equals_an_uninterrupted_run(tiny, script):
    slow = (tiny, "--max_steps=400", "--save_every=5", "--eval_every=200", "--lr_schedule=constant", "--compare")
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    victim = subprocess.Popen(command(*slow), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env)
    for line in victim.stdout:
        if line.startswith("step  13/"):
            break
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    run = only(tiny.parent / "out")
    at = torch.load(run / "off" / "last" / "trainer.pt", weights_only=True)["progress"]["step"]
    assert 10 <= at < 400
    n = at + 7
    assert script(f"--resume={run}", f"--max_steps={n}")[0] is None
    assert script(*slow, f"--max_steps={n}", f"--out_dir={tiny.parent / 'whole'}")[0] is None
    whole = only(tiny.parent / "whole")
    for arm in ("off", "on"):
        assert rows(run / arm) == rows(whole / arm)
        assert rows(run / arm, "eval") == rows(whole / arm, "eval")
        a, b = (torch.load(r / arm / "last" / "model.pth", weights_only=True) for r in (run, whole))
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tiny):
    args = command(tiny, "--max_steps=100000", "--save_every=100000", "--eval_every=100000")
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    for line in process.stdout:
        if line.startswith("step      3/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    run = only(tiny.parent / "out")
    assert process.returncode == 130
    assert f"--resume={run}" in out
    assert "Traceback" not in err
    step = torch.load(run / "last" / "trainer.pt", weights_only=True)["progress"]["step"]
    assert step >= 3
    assert len(rows(run)) == step


def two_processes(*args):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run([*torchrun, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.name == "nt", reason="torchrun with gloo")
def test_two_processes_and_micro_batches_give_the_same_losses(tiny, script):
    def losses(run):
        return [r["loss"] for r in rows(run)], [r["accuracy"] for r in rows(run, "eval")]

    assert script(tiny, f"--out_dir={tiny.parent / 'one'}")[0] is None
    assert script(tiny, "--micro_bsz=3", f"--out_dir={tiny.parent / 'micro'}")[0] is None
    two_processes("train_sft.py", tiny, f"--out_dir={tiny.parent / 'two'}")
    want = losses(only(tiny.parent / "one"))
    for name in ("micro", "two"):
        got = losses(only(tiny.parent / name))
        assert got[0] == pytest.approx(want[0], rel=2e-5)
        assert got[1] == pytest.approx(want[1], abs=0.03)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by their names in /proc")
def test_no_thread_of_the_process_group_outlives_it(tmp_path):
    # One that is busy with the last collective's tensors while Python ends aborts the process, once in ten runs.
    (tmp_path / "ends.py").write_text("""
import atexit, pathlib, torch
from common import dist

def gloo():
    return sum("gloo" in p.read_text() for p in pathlib.Path("/proc/self/task").glob("*/comm"))

atexit.register(lambda: print(f"at the end {gloo()}\\n", end=""))  # what is registered first is called last
_, _, device = dist.init("cpu", 1)
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight])  # imports much that takes hold of the process group
weight.sum().backward()
dist.sum_gradients([weight])
optimizer.step()
print(f"before {gloo() > 0}, sum {weight.grad.tolist()}\\n", end="")
""")
    out = two_processes(tmp_path / "ends.py").splitlines()
    assert sorted(line for line in out if line) == ["at the end 0"] * 2 + ["before True, sum [2.0, 2.0]"] * 2


def test_train_only_the_seed_leaves_the_model_alone(tiny, script):
    random_model(2, 32, 17, 16).save(tiny.parent / "base.pth")
    error, _ = script(tiny, "--train_only=seed", f"--model={tiny.parent / 'base.pth'}", "--alpha_lr=0.1")
    assert error is None
    run = only(tiny.parent / "out")
    a, b = (torch.load(p, weights_only=True) for p in (tiny.parent / "base.pth", run / "last" / "model.pth"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    gates = [r["gate"] for r in rows(run, "eval")]
    assert gates[0] != gates[-1]


def test_the_controls_that_stand_in_for_a_seed(tiny, script):
    losses = {}
    arms = {
        "nothing": [],
        "start": ["--start_state"],
        "fixed": ["--start_state", "--start_lr=0"],
        "twice": ["--read_twice"],
        "only start": ["--start_state", "--train_only=seed", f"--model={tiny.parent}/trained.pth"],
    }
    for name, args in arms.items():
        out = tiny.parent / name
        error, _ = script(tiny, "--future_seed=False", f"--out_dir={out}", *args)
        assert error is None
        losses[name] = [r["loss"] for r in rows(only(out))]
        assert (only(out) / "last" / "start.pt").exists() == ("start" in name or name == "fixed")
        shutil.copy(only(out) / "last" / "model.pth", tiny.parent / "trained.pth")
    assert losses["fixed"] == losses["nothing"]  # a start state of zero is none
    assert losses["start"][0] == losses["nothing"][0]
    assert losses["start"][2:] != losses["nothing"][2:]
    assert losses["twice"][-1] != losses["nothing"][-1]
    S = torch.load(only(tiny.parent / "only start") / "last" / "start.pt")["start_state"]
    assert S.abs().amax((1, 2, 3)).min() > 0, "every layer's, the first included"
    error, _ = script(f"--resume={only(tiny.parent / 'start')}", "--max_steps=8")
    assert error is None
    assert len(rows(only(tiny.parent / "start"))) == 8


def test_a_single_arm_writes_its_result_with_controls(tiny, script):
    error, _ = script(tiny, "--controls")
    assert error is None
    record = json.loads((only(tiny.parent / "out") / "result.json").read_text())
    assert record["metric"] == "accuracy"
    assert set(record["result"]["controls"]) == {"no seed", "another row's seed", "a random seed"}
    assert 0 <= record["result"]["accuracy"] <= 1
    assert record["config"]["controls"] is True
    assert len(record["result"]["gate"]) == 1


def test_dtype_auto_is_recorded_as_what_it_came_to(tiny, script):
    error, out = script(tiny, "--dtype=auto", "--max_steps=1")
    assert error is None
    assert "times as fast" in out
    assert json.loads((only(tiny.parent / "out") / "config.json").read_text())["config"]["dtype"] in (
        "float32",
        "bfloat16",
    )


def test_muon_bfloat16_head_and_input_gates_run(tiny, script):
    args = ("--optimizer=muon", "--dtype=bfloat16", "--fs_gate=head", "--fs_input_gate", "--checkpointing=True")
    error, _ = script(tiny, *args, "--max_steps=2")
    assert error is None
    assert len(rows(only(tiny.parent / "out"))) == 2


def test_loss_weighs_every_answer_token_the_same(tiny, script, tmp_path):
    """The logged loss of a step is the sum over its answer tokens divided by their number, by an independent sum."""
    pairs = (("12,", "21"), ("3456,", "6"), ("7,", "89012"))
    data = [{"prompt": p, "answer": a} for p, a in pairs]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in data))
    (tmp_path / "val.jsonl").write_text('{"prompt": "99,", "answer": "99"}\n')
    net = random_model(2, 32, 12, 16)
    net.save(tmp_path / "base.pth")
    files = {"data": str(tmp_path / "rows.jsonl"), "val_data": str(tmp_path / "val.jsonl")}
    error, _ = script(
        tiny, "--task=jsonl", f"--task_args={files}", "--tokenizer=chars:0123456789,#",
        f"--model={tmp_path / 'base.pth'}", "--n_train=0", "--n_val=0", "--bsz=3", "--max_steps=1",
        "--future_seed=False",
    )  # fmt: skip
    assert error is None
    encode = lambda s: torch.tensor([["0123456789,#".index(c) for c in s]])
    total = n = 0
    with torch.no_grad():
        for r in data:
            logits = net.head(net(encode(r["prompt"] + r["answer"]))[0])[0, len(r["prompt"]) - 1 :]
            want = encode(r["answer"] + "#")[0]
            total += torch.nn.functional.cross_entropy(logits, want, reduction="sum").item()
            n += len(want)
    assert rows(only(tiny.parent / "out"))[0]["loss"] == pytest.approx(total / n, rel=1e-5)


class TestBadInput:
    """Each: one clear sentence, non-zero exit, and no run directory that looks finished."""

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--start_state"], ["future_seed=False"]),
            (["--read_twice", "--compare", "--future_seed=False"], ["compare=False"]),
            (["--controls", "--n_val=1"], ["1 validation", "at least 2", "n_val"]),
            (["--micro_bsz=-1"], ["micro_bsz=-1", "at least 0"]),
            (["--fs_clip=-1"], ["fs_clip=-1.0", "at least 0"]),
            (["--eval_every=0"], ["eval_every=0", "at least 1"]),
            (["--seed=-1"], ["seed=-1"]),
            (["--n_stepz=3"], ["n_stepz"]),
            (["--optimizer=sgd"], ["optimizer", "adamw, muon"]),
            (["--task=punk"], ["punk", "punc"]),
            (["--task_args.digits=4"], ["digits", "n_digits"]),
            (["--fs_layer_start=2"], ["layer_start 2", "2-layer"]),
            (["--model=nowhere.pth"], ["nowhere.pth"]),
            (["--tokenizer=chars:0123456789LMR=|#"], ["mask"]),
            (["--tokenizer=chars:abc_#"], ["0123456789LMR=|"]),
            (["--max_prompt_tokens=5"], ["max_prompt_tokens"]),
            (["--bsz=1000"], ["bsz=1000"]),
            (["--compare", "--time_budget=5"], ["time_budget"]),
            (["--head_size=24"], ["head_size 24"]),
            (["--resume=nowhere"], ["nowhere"]),
        ],
    )
    def test_one_sentence(self, tiny, script, args, words):
        error, _ = script(tiny, *args)
        assert_one_sentence(error, words)

    def test_nan_stops_and_keeps_the_last_good_weights(self, tiny, script):
        error, _ = script(tiny, "--lr=1e30", "--grad_clip=0.0", "--warmup=0", "--eval_every=100", "--save_every=1")
        assert "step" in error
        assert "last good weights" in error
        run = only(tiny.parent / "out")
        assert (run / "last" / "model.pth").exists()

    def test_wrong_tokenizer_for_the_vocabulary(self, tiny, script, tmp_path):
        random_model(2, 32, 9, 16).save(tmp_path / "base.pth")
        error, _ = script(tiny, f"--model={tmp_path / 'base.pth'}")
        assert "9" in error
        assert "chars:" in error

    def test_out_of_memory_names_what_to_lower(self, tiny, script, monkeypatch):
        def explode(*args, **kwargs):
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

        monkeypatch.setattr("common.loss.HeadLoss.apply", explode)
        error, _ = script(tiny)
        assert "out of memory" in error
        assert "micro_bsz" in error

    @pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 1 vs 2")])
    def test_full_disk_loses_nothing(self, tiny, script, monkeypatch, failure):
        real, calls = torch.save, []

        def full(obj, path):
            calls.append(path)
            if len(calls) > 6:
                usage = shutil.disk_usage(path.parent)._replace(free=0)
                monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
                raise failure
            real(obj, path)

        monkeypatch.setattr(torch, "save", full)
        error, _ = script(tiny)
        assert "no space left" in error
        run = only(tiny.parent / "out")
        assert torch.load(run / "last" / "trainer.pt", weights_only=True)["progress"]["step"] >= 0
        assert not list(run.rglob("*.tmp"))


def test_an_odd_row_is_not_left_without_company(tiny, script):
    error, _ = script(tiny, "--compare", "--n_val=3", "--eval_bsz=2", "--max_steps=1")
    assert error is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["train_sft.py", "train_diffusion.py", "sample.py"])
def test_a_gpu_that_is_not_there(tiny, script, name):
    random_model(2, 32, 17, 16).save(tiny.parent / "base.pth")
    args = ["--prompt=1", "--tokenizer=chars:0123456789LMR=|_#"] if name == "sample.py" else [tiny]
    error, _ = script(*args, f"--model={tiny.parent / 'base.pth'}", "--device=cuda", name=name)
    assert_one_sentence(error, ["finds no GPU", "device='cpu'"])


def test_help_lists_every_key(script):
    error, out = script("--help")
    assert error is None
    for word in (
        "train_sft.py configs/quickstart.py",
        "max_steps",
        "fs_layer_start",
        "evaluate only",
        "examples a step",
    ):
        assert word in out


def test_order_of_batches_is_a_function_of_seed_and_step():
    from common.batches import WINDOW, Batches
    from tasks import Example, Task

    examples = [Example(str(i), [1] * (1 + i % 9), [2]) for i in range(WINDOW * 4 * 2 + 10)]
    task = Task(examples, [], lambda *_: {}, "x", {}, 1)
    a, b = Batches(task, 4, 0, 100), Batches(task, 4, 0, 100)
    per_epoch = len(examples) // 4
    order = [[e.id for e in a[i]] for i in range(2 * per_epoch)]
    assert order[37] == [e.id for e in b[37]], "a resumed run must find its batch without reading those before"
    first = [i for batch in order[:per_epoch] for i in batch]
    assert len(set(first)) == len(first) >= len(examples) - 3 * 4
    assert order[:per_epoch] != order[per_epoch:]
    assert [[e.id for e in Batches(task, 4, 1, 100)[i]] for i in range(9)] != order[:9]
    spread = [max(len(e.prompt) for e in a[i]) - min(len(e.prompt) for e in a[i]) for i in range(WINDOW)]
    assert sum(spread) / len(spread) < 1, "rows of a batch should be alike in length"


def test_time_budget_stops(tiny, script):
    start = time.perf_counter()
    assert script(tiny, "--max_steps=1000000", "--time_budget=0.5")[0] is None
    assert time.perf_counter() - start < 30
    assert 1 <= len(rows(only(tiny.parent / "out"))) < 10000
