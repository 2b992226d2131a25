"""Resuming: what a run may be continued with, what its record then says, and where its state lies."""

import json
import shutil

import pytest
import torch

from common import resume
from common.checkpoint import restore_trainer, save_trainer
from common.errors import UserError
from conftest import assert_one_sentence, random_model
from test_train import only, rows


def read(path):
    return json.loads(path.read_text())


def test_what_training_depends_on_can_not_change(tiny, script):
    assert script(tiny, "--compare")[0] is None
    run = only(tiny.parent / "out")
    shutil.rmtree(run / "on")  # as if it had been killed between the arms
    (run / "compare.json").unlink()
    before = {p.name: p.read_bytes() for p in (run / "off" / "last").iterdir()}
    for change, was in (("lr=1e-05", "0.001"), ("n_embd=64", "32"), ("weight_decay=0.5", "0.0"), ("max_steps=8", "6")):
        error, _ = script(f"--resume={run}", f"--{change}")
        assert_one_sentence(error, [change.partition("=")[0], f"began with {was}", "start a new run"])
    error, _ = script(f"--resume={run}", "--data_seed=7")
    assert_one_sentence(error, ["data_seed"])
    assert {p.name: p.read_bytes() for p in (run / "off" / "last").iterdir()} == before
    assert not (run / "on").exists()
    error, _ = script(f"--resume={run}", tiny, "--eval_bsz=5", "--log_every=2")  # the same config, named again
    assert error is None
    rates = [[r["lr"] for r in rows(run / arm)] for arm in ("off", "on")]
    assert rates[0] == rates[1]


def test_a_resumed_run_keeps_its_name_and_lists_its_versions(tiny, script, monkeypatch):
    assert script(tiny, "--max_steps=4", "--lr_schedule=constant")[0] is None
    run = only(tiny.parent / "out")
    begun = read(run / "result.json")
    here = resume.run.environment() | {"commit": "b"}
    monkeypatch.setattr(resume.run, "environment", lambda: here)
    file = run / "config.json"
    file.write_text(json.dumps(read(file) | {"commit": "a"}))
    assert script(f"--resume={run}", "--max_steps=6")[0] is None
    record = read(run / "result.json")
    assert (record["name"], record["argv"]) == ("tiny", begun["argv"])
    assert record["commit"] == "a + b"
    assert record["torch"] == begun["torch"]
    assert record["config"]["max_steps"] == 6


def test_other_rows_or_weights_are_refused(tmp_path):
    found = dict(config={}, val_hash="x", base_sha256=None)
    assert resume.write_config(tmp_path, "n", **found)["name"] == "n"
    before = (tmp_path / "config.json").read_bytes()
    for other, word in ((dict(val_hash="y"), "validation rows"), (dict(base_sha256="z"), "base weights")):
        with pytest.raises(UserError, match=word):
            resume.write_config(tmp_path, "n", **found | other)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_restored_state_does_not_lie_in_the_file(tmp_path):
    net = torch.nn.Linear(64, 64)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 64)).sum().backward()
    adam.step()
    save_trainer(tmp_path / "t.pt", {"net": net, "adam": adam}, {"step": 1})
    again = torch.nn.Linear(64, 64)
    other = torch.optim.AdamW(again.parameters())
    assert restore_trainer(tmp_path / "t.pt", {"net": again, "adam": other}) == {"step": 1}
    with open(tmp_path / "t.pt", "r+b") as f:  # in place: a mapped tensor would see it
        f.write(b"\0" * (tmp_path / "t.pt").stat().st_size)
    want, got = adam.state_dict()["state"], other.state_dict()["state"]
    assert all(torch.equal(want[i][k], got[i][k]) for i in want for k in ("exp_avg", "exp_avg_sq"))


def test_a_time_budget_ends_all_processes_at_one_step(tiny, script, monkeypatch):
    """What another process has used up counts: here it says so at step 3."""
    asked = []

    def any_of(flag, device):
        asked.append(flag)
        return flag or len(asked) == 8  # at every step two questions: interrupted, over budget

    monkeypatch.setattr("common.dist.any_of", any_of)
    assert script(tiny, "--time_budget=1000", "--max_steps=100")[0] is None
    run = only(tiny.parent / "out")
    assert rows(run)[-1]["step"] == rows(run, "eval")[-1]["step"] == 3


def test_a_run_of_another_checkpoint_is_refused(tiny, script):
    for n in (0, 1):
        random_model(2, 32, 17, 16, seed=n).save(tiny.parent / f"{n}.pth")
    assert script(tiny, f"--model={tiny.parent / '0.pth'}")[0] is None
    run = only(tiny.parent / "out")
    shutil.copy(tiny.parent / "0.pth", tiny.parent / "moved.pth")
    assert script(f"--resume={run}", f"--model={tiny.parent / 'moved.pth'}")[0] is None
    error, _ = script(f"--resume={run}", f"--model={tiny.parent / '1.pth'}")
    assert_one_sentence(error, ["base weights"])
