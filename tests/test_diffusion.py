"""train_diffusion.py as its users run it: arms, masks, resume, decoding, what sample.py makes of a run, bad input."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch

from common.tokenizer import get_tokenizer
from conftest import ROOT, random_model
from model import RWKV7, RWKVConfig
from test_train import only, rows

NAME = "train_diffusion.py"


def test_all_arms_leave_a_complete_record(tiny, script):
    error, out = script(tiny, name=NAME)
    assert error is None
    run = only(tiny.parent / "out")
    result = json.loads((run / "compare.json").read_text())
    assert result["metric"] == "accuracy"
    assert result["levels"]["causal ceiling"] == 0.1
    assert len(result["val_hash"]) == 64
    for arm in ("off", "on", "start"):
        assert [r["step"] for r in rows(run / arm)] == [1, 2, 3, 4, 5, 6]
        assert [r["step"] for r in rows(run / arm, "eval")] == [0, 3, 6]
        assert {"loss", "token_accuracy", "accuracy", "exact", "training_seconds"} <= set(result[arm])
        sets = result[arm]["sets"]
        assert sets["validation"]["one pass"]["accuracy"] == result[arm]["accuracy"]
        assert sets["fresh"]["one pass"]["loss"] != result[arm]["loss"]
    assert set(result["on"]["controls"]) == {"no seed", "another row's seed", "a random seed"}
    assert "controls" not in result["off"]
    assert [r["tokens"] for r in rows(run / "off")] == [r["tokens"] for r in rows(run / "start")]
    assert {p.name for p in (run / "on" / "last").iterdir()} == {"model.pth", "seed.pt", "trainer.pt"}
    assert {p.name for p in (run / "start" / "last").iterdir()} == {"model.pth", "start.pt", "trainer.pt"}
    assert (run / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert out.splitlines()[-1] == f"wrote {run}"
    assert "prompt ...'L=" in out, "the masks must be shown with what stands around them"


def test_a_closed_gate_is_the_arm_without_a_seed(tiny, script):
    assert script(tiny, "--fs_seed_scale=0.0", "--arms=['off','on']", name=NAME)[0] is None
    run = only(tiny.parent / "out")
    assert [r["loss"] for r in rows(run / "off")] == [r["loss"] for r in rows(run / "on")]


def test_what_a_model_from_scratch_starts_from(tiny, script):
    found = {}
    for name, *args in (
        ("officially", "--w0_first=[]", "--w0_above=[]", "--a0_first=[]", "--out_init=0"),
        ("here", "--x_k_above=[0,10]", "--ln1_first=0.5"),
    ):
        out = tiny.parent / name
        error, _ = script(tiny, "--max_steps=0", "--arms=['off']", f"--out_dir={out}", *args, name=NAME)
        assert error is None
        found[name] = torch.load(only(out) / "off" / "last" / "model.pth")
    torch.manual_seed(0)
    official = RWKV7(RWKVConfig(2, 32, len(found["here"]["head.weight"]), 16)).init_weights().state_dict()
    assert all(torch.equal(official[k], t) for k, t in found["officially"].items())
    other = {k for k, t in found["here"].items() if not torch.equal(official[k], t)}
    last = {f"blocks.{l}.{m}.weight" for l in (0, 1) for m in ("att.output", "ffn.value")}
    ramps = {"blocks.0.att.w0": (-5, 3), "blocks.1.att.w0": (-6, -2), "blocks.0.att.a0": (4, -1),
             "blocks.1.ffn.x_k": (0, 10)}  # fmt: skip
    assert other == {*ramps, *last, "blocks.0.ln1.weight"}
    assert torch.equal(found["here"]["blocks.0.ln1.weight"], torch.full((32,), 0.5))
    for name, ends in ramps.items():
        ramp = torch.linspace(*ends, 16)
        assert torch.equal(found["here"][name].flatten(), torch.cat([ramp, ramp])), "one ramp a head"


def test_keys_in_common(tiny, script):
    alike = {}
    for size in (0, 4):
        args = ("--max_steps=0", "--arms=['off']", f"--common_key={size}", f"--out_dir={tiny.parent / str(size)}")
        assert script(tiny, *args, name=NAME)[0] is None
        net = RWKV7.load(only(tiny.parent / str(size)) / "off" / "last" / "model.pth")
        block = net.blocks[0]
        with torch.no_grad():
            keys = block.att.key(block.ln1(block.ln0(net.emb.weight))).unflatten(-1, (2, 16))  # (V, H, N)
        alike[size] = torch.nn.functional.cosine_similarity(keys[1:], keys[:-1], dim=-1).abs().mean()
    assert alike[4] > alike[0] + 0.3, "removal is blind to the sign"


def test_kill_and_resume_equals_an_uninterrupted_run(tiny, script):
    slow = (tiny, "--max_steps=40", "--save_every=5", "--eval_every=20", "--lr_schedule=constant",
            "--arms=['off','on']", "--mask=random", "--fs_form=attractor")  # fmt: skip
    command = [sys.executable, NAME, *map(str, slow)]
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env)
    arms = 0
    for line in victim.stdout:
        arms += line.startswith("arm ")
        if arms == 2 and line.startswith("step 13/"):
            break
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    run = only(tiny.parent / "out")
    at = torch.load(run / "on" / "last" / "trainer.pt", weights_only=True)["progress"]["step"]
    assert 10 <= at < 40
    assert script(f"--resume={run}", name=NAME)[0] is None
    assert script(*slow, f"--out_dir={tiny.parent / 'whole'}", name=NAME)[0] is None
    whole = only(tiny.parent / "whole")
    for arm in ("off", "on"):
        assert rows(run / arm) == rows(whole / arm)
        assert rows(run / arm, "eval") == rows(whole / arm, "eval")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_an_evaluation_at_once(tiny):
    slow = ("--n_val=1000", "--eval_bsz=2", "--more_sets={}")  # some seconds
    args = [sys.executable, NAME, str(tiny), "--arms=['on']", *slow]
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    for line in process.stdout:
        if line.startswith("arm on"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (130, "")
    run = only(tiny.parent / "out")
    assert out.splitlines()[-1] == f"stopped and saved; continue with --resume={run}"
    assert (run / "on" / "last" / "trainer.pt").exists()
    assert not (run / "on" / "metrics.jsonl").exists(), "the evaluation was waited for"


def rows_drawn(monkeypatch, steps=30):
    """The tokenizer, and [(row, what train_diffusion.py makes of it with mask="random")]."""
    monkeypatch.chdir(ROOT)
    module = runpy.run_path(NAME)
    globals_ = module["noised"].__globals__
    globals_.update(task="infill", task_args={"kind": "rightcopy", "n_digits": 8}, n_train=1000, n_val=10)
    tok = get_tokenizer("chars:0123456789LMR=|_#", None)
    job = module["build_job"](tok, 1234, {})
    return tok, [(e, module["noised"](e, step)) for step in range(steps) for e in (job.train[i] for i in range(20))]


def test_random_masks_have_uniform_ratios_and_only_hide_blanks(monkeypatch):
    tok, pairs = rows_drawn(monkeypatch)
    counts = torch.zeros(9)
    for e, n in pairs:
        counts[len(n.blanks)] += 1
        assert set(n.blanks) <= set(e.blanks)
        assert n.blanks == sorted(n.blanks)
        truth = dict(zip(e.blanks, e.answer, strict=True))
        assert n.answer == [truth[p] for p in n.blanks]
        for p, t in enumerate(n.prompt):
            if p in n.blanks:
                assert t == tok.mask_id
            else:
                assert t == truth.get(p, e.prompt[p])
    assert counts[0] == 0, "at least one is masked"
    share = counts / counts.sum()
    # u uniform, then 8 coins: every count from 0 to 8 is equally likely (1/9), and none at all becomes one
    assert share[1].item() == pytest.approx(2 / 9, abs=0.05)
    assert (share[2:] - 1 / 9).abs().max() < 0.05


def test_rows_are_filled_up_on_the_right_as_published(tiny, script):
    assert script(tiny, "--seq_len=40", "--arms=['on']", name=NAME)[0] is None
    run = only(tiny.parent / "out")
    assert rows(run / "on")[0]["tokens"] == 4 * 40
    error, _ = script(tiny, "--seq_len=10", name=NAME)
    assert "seq_len is 10: raise it" in error


def test_decoders_and_more_sets_are_evaluated_at_the_end(tiny, script):
    sets = "{'fresh': {}, 'longer': {'n_digits': 5}}"
    args = (
        "--decoders=['iterative','one pass']",
        "--mask=random",
        "--rounds=2",
        f"--more_sets={sets}",
        "--arms=['on']",
    )
    assert script(tiny, *args, name=NAME)[0] is None
    found = json.loads((only(tiny.parent / "out") / "compare.json").read_text())["on"]["sets"]
    assert set(found) == {"validation", "fresh", "longer"}
    assert all(set(v) == {"iterative", "one pass"} for v in found.values())
    assert found["longer"]["one pass"]["tokens"] == 12 * 5


def test_sample_fills_the_masks_of_a_run_round_by_round(tiny, script):
    assert script(tiny, "--seq_len=24", name=NAME)[0] is None
    run = only(tiny.parent / "out")
    error, out = script(
        f"--model={run}", "--prompt=L=123|M=___|R=456", "--rounds=0", "--threshold=2.0", name="sample.py"
    )
    assert error is None
    states = [line.split()[-1] for line in out.splitlines() if "L=123|M=" in line][1:]
    assert [s.count("_") for s in states] == [2, 1, 0]
    error, out = script(f"--model={run}", "--compare", name="sample.py")
    assert error is None
    assert out.count("seed on") == 3
    error, _ = script(f"--model={run}", "--prompt=L=123", name="sample.py")
    assert "the prompt has no mask" in error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--arms=[]"], "choose from off, on, start"),
        (["--arms=['both']"], "choose from off, on, start"),
        (["--arms=[['on']]"], "choose from off, on, start"),
        (["--decoders=['best']"], "choose from one pass, iterative, assignment"),
        (["--mask=half"], "choose from task, random"),
        (["--fs_form=middle"], "use start or attractor"),
        (["--fs_layer_start=2"], "seeds no layer"),
        (["--task=retrieval", "--task_args={}", "--tokenizer=bytes"], "rows without blanks"),
        (["--tokenizer=chars:0123456789LMR=|#"], "has no mask"),
        (["--tokenizer=chars:0123456789LMR=|_"], "has no mask"),
        (["--rounds=-1"], "rounds=-1: it must be at least 0"),
        (["--top_k=0"], "top_k=0: it must be at least 1"),
        (["--decoders=['one pass','assignment']"], "does not say which tokens"),
        (["--fs_gate=heads"], "seed gate 'heads' is unknown"),
        (["--more_sets={'validation': {'n_digits': 2}}"], "none named validation"),
        (["--more_sets={'fresh': 3}"], "option of the task"),
        (["--n_val=1"], "at least 2"),
        (["--w0_above=[1.0]"], "give the first and the last value"),
        (["--a0_first=['a','b']"], "give the first and the last value"),
        (["--x_k_above=[10]"], "give the first and the last value"),
        (["--steps=3"], "unknown key 'steps'"),
    ],
)
def test_bad_input_is_one_sentence(tiny, script, args, said):
    error, out = script(tiny, *args, name=NAME)
    assert said in error
    assert error.count("\n") == 0
    assert "\nstep " not in out, "before an arm is trained"


def test_a_resumed_run_is_not_changed(tiny, script):
    assert script(tiny, name=NAME)[0] is None
    run = only(tiny.parent / "out")
    before = (run / "compare.json").read_bytes()
    for change in ("--muon_lr=0.3", "--data_seed=7", "--seed=3", "--mask=random", "--max_steps=8"):
        error, _ = script(f"--resume={run}", change, name=NAME)
        assert "began with" in error
    assert (run / "compare.json").read_bytes() == before
    assert script(f"--resume={run}", "--decoders=['one pass','iterative']", name=NAME)[0] is None
    result, old = json.loads((run / "compare.json").read_bytes()), json.loads(before)
    assert (result["name"], result["on"]["loss"]) == ("tiny", old["on"]["loss"])
    assert result["on"]["controls"] == old["on"]["controls"]
    assert "iterative" in result["on"]["sets"]["fresh"]


def test_a_checkpoint_with_official_layout_can_be_trained(tiny, script):
    """From weights that are there, with the byte tokenizer, whose mask is a token that no text uses."""
    path = tiny.parent / "base.pth"
    random_model(n_layer=2, n_embd=64, vocab_size=256, head_size=32).save(path)
    args = (
        f"--model={path}",
        "--tokenizer=bytes",
        "--arms=['on']",
        "--head_size=32",
        "--max_steps=2",
        "--eval_every=2",
    )
    error, out = script(tiny, *args, name=NAME)
    assert error is None, error
    record = json.loads((only(tiny.parent / "out") / "config.json").read_text())
    assert len(record["base_sha256"]) == 64
