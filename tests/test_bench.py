"""bench/: the scripts run, say what was not measured and why, and refuse what means nothing."""

import json
import math
import os
import statistics

import pytest
import torch

from bench import engines, measuring, operators, weights, wkv, workers
from common import run
from common.errors import UserError
from conftest import random_model
from wkv_cuda.__main__ import operands
from wkv_cuda.reference import wkv7_loop

SMALL = ("--tokens=24", "--answers=8", "--steps=3", "--rounds=2", "--threads=1", "--precision", "fp32")


class Inline:
    """A worker in this process: starting one that imports torch takes seconds."""

    def __init__(self, job):
        self.job, self.engine = job, engines.ENGINES[job["engine"]](job)

    def answer(self):
        return dict(version=self.engine.version)

    def ask(self, **task):
        with torch.set_grad_enabled(self.job["engine"] == "training"):
            return dict(rss_gib=engines.peak_rss()) | engines.perform(self.engine, task)

    def close(self):
        pass


def test_the_model_script(script, tmp_path, monkeypatch):
    """Our own engines in this process, all others in theirs."""
    pytest.importorskip("matplotlib")
    real = workers.Worker
    ours = lambda job: job["engine"] in ("ours", "decoder") or job.get("operator") == ""
    monkeypatch.setattr(workers, "Worker", lambda job: (Inline if ours(job) else real)(job))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    weights.write_random(2, 64, 50, tmp_path / "small.pth")
    args = ("--only", "inference", "training", "scaling", "--peers", "--profile", "--longest=2048")
    files = (f"--model={tmp_path}/small.pth", f"--json={tmp_path}/m.json", f"--plot={tmp_path}/p.png")
    try:
        error, out = script(*SMALL, *args, *files, name="bench/model.py")
    finally:
        torch.set_grad_enabled(True)  # an engine that only infers turns them off for its process
    assert error is None
    record = run.read_json(tmp_path / "m.json")
    rows = {tuple(row["key"]): row for row in record["rows"]}
    assert {("decode", "fp32", "model.py"), ("prefill of 24", "fp32", "model.py")} < set(rows)
    assert rows["training step, 2 x 24", "fp32", "this repository"]["ratio"] == 1
    for row in rows.values():
        assert row["ms"] == pytest.approx(1e3 * statistics.median(row["seconds"][""]))
        assert 0.01 < row["rss_gib"] < 8
    for engine, package in (("rwkv", "rwkv"), ("llama.cpp", "llama_cpp")):  # measured, or named with a reason
        if ("decode", "fp32", engine) in rows:
            assert rows["decode", "fp32", engine]["error"] < 1e-4  # it agrees with model.py on the same weights
        else:
            assert package in record["missing"][f"{engine} fp32"]
            assert f"{engine} fp32: not measured: " in out
    assert "CUDA" in record["missing"]["fla"]

    assert [r["tokens"] for r in record["scaling"] if r["layers"] == 2] == [1024, 2048]
    assert all(r["seconds"] > r["decode_seconds"] > 0 for r in record["scaling"])
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"
    parts = {r["part"]: r["ms"] for r in record["profile"]}
    assert min(parts[p] for p in ("matrix products", "WKV7 operator", "clipping and AdamW")) > 0

    error, table = script(tmp_path / "m.json", name="report.py")  # the table of a document is that of the terminal
    lines = [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert len(lines) > len(rows)
    for cells in lines:
        assert "---" in cells or " ".join(cells).split() in [line.split() for line in out.splitlines()]


def test_the_operator_script(script, tmp_path):
    options = ("--shape=1,32,2,64", "--threads=1", "--rounds=3", f"--json={tmp_path}/w.json")
    error, out = script(*options, name="bench/wkv.py")
    assert error is None
    record = run.read_json(tmp_path / "w.json")
    for row in record["rows"]:
        assert row["error_y"] < (1e-2 if row["key"][1] == "bf16" else 1e-5)
        assert len(row["seconds"]["forward"]) == 3
        for what, figure in row["figures"].items():
            counted = 32 * 2 * 64**2 * (36 if what == "both" else 10)  # 5 multiply-adds forward, 13 backward
            assert figure["gflops"] == pytest.approx(counted / figure["ms"] / 1e6)
    names = {row["key"][2] for row in record["rows"]} | set(record["missing"])
    assert names >= {"torch", "fla chunk", "ggml"}
    assert "of peak" in out
    if not torch.cuda.is_available():
        for name in ("wkv.py", "model.py"):
            assert script("--device=cuda", name=f"bench/{name}")[1].strip() == "not measured: no CUDA device"


def test_no_ratio_between_machines(tmp_path):
    row = dict(key=["decode", "fp32", "model.py"], seconds={"": [0.02, 0.03, 0.025]})
    box = measuring.box()
    here = dict(bench="model", box=box, rows=[row])
    faster = here | dict(rows=[row | dict(seconds={"": [0.01, 0.01, 0.01]})])
    paths = [tmp_path / f"{i}.json" for i in range(2)]

    def compare(a, b):
        for path, record in zip(paths, (a, b), strict=True):
            path.write_text(json.dumps(record))
        return measuring.compare(*map(str, paths))[1]

    assert compare(here, faster)[0][-3:] == ("25.00", "10.00", "0.40")
    for key in measuring.BOX:
        with pytest.raises(UserError, match=f"no ratio between machines: {key} is"):
            compare(here, faster | dict(box=box | {key: "another"}))
    with pytest.raises(UserError, match="nothing to compare"):
        compare(here, faster | dict(bench="wkv"))


def test_ratios_are_taken_within_rounds():
    slowing = [1.0, 2.0, 30.0]  # the machine slows down; a ratio of medians would be 2 or 1/2 for two equal programs
    assert measuring.ratio([2 * t for t in slowing], slowing) == 2
    order = []
    todo = {n: (lambda n=n: order.append(n) or 1.0) for n in "ab"}
    assert measuring.rounds(todo, 3) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert order == list("ababab")


def test_a_process_that_dies_is_a_reason():
    worker = workers.Worker(dict(engine="nobody", threads=1))
    with pytest.raises(workers.Failed, match="nobody"):
        worker.answer()
    worker.close()
    worker = workers.Worker(dict(engine="nobody", threads=1))
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(workers.Failed, match="SIGKILL" if os.name == "posix" else "code"):
        worker.answer()
    worker.close()


def test_peers_compute_the_same_operator():
    inputs = operands(2, 48, 2, 64)
    y, sT = wkv7_loop(*inputs)
    for make in (operators.fla_chunk, operators.ggml):
        try:
            f = operators.whole(make())
        except (ImportError, OSError):
            continue
        for got, want in zip(f(*inputs), (y, sT), strict=True):
            assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_gguf_names_every_tensor_once():
    net = random_model(n_layer=3, n_embd=128)
    made = weights.gguf_tensors(net.state_dict())
    numbers = sum(t.numel() for t in net.state_dict().values())
    unread = sum(t.numel() for name, t in made.items() if name.startswith("blk.0.time_mix_v") and "value" not in name)
    assert sum(t.numel() for t in made.values()) - unread == numbers
    assert made["blk.2.time_mix_lerp_fused.weight"].shape == (6, 1, 1, 128)
    assert torch.equal(made["blk.1.time_mix_w1.weight"], net.blocks[1].att.w1.T)
    assert torch.equal(made["blk.1.time_mix_lerp_fused.weight"][3, 0, 0], net.blocks[1].att.x_v.flatten())


def test_what_a_shape_costs():
    flops, moved = wkv.cost((1, 10, 1, 64), 2, False)
    assert flops == 10 * 10 * 64 * 64
    assert moved == 10 * 7 * 64 * 2 + 2 * 64 * 64 * 4
    assert math.isclose(wkv.cost((1, 10, 1, 64), 2, True)[1], 10 * 2560 + 4 * 64 * 64 * 4)  # 2.56 KB a token and head
