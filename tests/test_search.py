"""The search: protocol, records, kills. A stand-in for train_sft.py makes most of it fast; one search is a real one."""

import ast
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time

import pytest

from common import config, launch, records
from common.errors import UserError
from common.launch import execute
from common.tables import comparison, search_tables
from conftest import ROOT, assert_one_sentence

# What train_sft.py leaves behind, without the training: a score that depends on the candidate, the seed and the data.
TRAINER = r"""
import ast, json, os, random, sys, time
from pathlib import Path

flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
resumed = "resume" in flags
home = Path(flags["resume"]) if resumed else Path(flags["out_dir"]) / "task-1"
home.mkdir(parents=True, exist_ok=True)
if resumed:
    config = json.loads((home / "config.json").read_text())
else:
    values = {k: v if k == "out_dir" else ast.literal_eval(v) for k, v in flags.items() if "." not in k}
    config = dict(task="stand-in", data_seed=1, fs_layer_start=1, fs_alpha_init=0.0, fs_seed_scale=1.0, n_val=9)
    config |= values
    config["task_args"] = {k.split(".")[1]: v for k, v in flags.items() if "." in k}
    (home / "config.json").write_text(json.dumps(config))
with open(os.environ["STUB_LOG"], "a") as f:
    f.write(f"{home.parent.name} {'resumed' if resumed else 'begun'}\n")
if config["fs_layer_start"] > 3:
    sys.exit("error: layer_start seeds no layer")
if config["fs_alpha_init"] == 99:
    time.sleep(60)
if config["bsz"] > int(os.environ.get("STUB_FITS", 1 << 30)):
    sys.exit(os.environ.get("STUB_ERROR", "error: out of memory: lower micro_bsz"))
(home / "last").mkdir(exist_ok=True)
(home / "last" / "trainer.pt").write_text("state")
time.sleep(float(os.environ.get("STUB_SECONDS", 0.02)))
gate = config["fs_seed_scale"] * (config["fs_alpha_init"] or 1) * config["future_seed"]
noise = random.Random(str((config["seed"], config["data_seed"]))).gauss(0, 0.01)
own = random.Random(str((config["seed"], gate))).gauss(0, 0.002) if gate else 0
score = 0.5 + noise + 0.1 * gate + own
metrics = dict(loss=1 - score, accuracy=score, training_seconds=1.0 + config.get("read_twice", False))
if config["future_seed"]:
    metrics["gate"] = [gate, gate]
    if config.get("controls"):
        names = ("no seed", "another row's seed", "a random seed")
        metrics["controls"] = {n: dict(accuracy=0.5 + noise) for n in names}
rows = [dict(kind="train", step=config["max_steps"], tokens=8 * config["max_steps"], memory_gib=0.1),
        dict(kind="eval", step=config["max_steps"], accuracy=score)]
(home / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
fixed = dict(base_sha256=None, commit="c", uncommitted_changes=False, torch="2", python="3", platform="p", gpu=None)
val = f"rows of {config['data_seed'] if not os.environ.get('STUB_SAME_ROWS') else 1} {config['task_args']}"
(home / "result.tmp").write_text(json.dumps(
    dict(metric="accuracy", name="task", config=config, levels={}, val_hash=val, result=metrics, **fixed)))
os.replace(home / "result.tmp", home / "result.json")
"""

# search.py with that stand-in: the same command, another script
DRIVER = """
import runpy, sys
import common.launch as launch
real, trainer = launch.command, sys.argv[1]
launch.command = lambda spec, folder: [trainer if a == "train_sft.py" else a for a in real(spec, folder)]
sys.argv = ["search.py", *sys.argv[2:]]
runpy.run_path("search.py", run_name="__main__")
"""

CONFIG = dict(
    candidates={"strong": {"fs_alpha_init": 1.0}, "twin": {"fs_alpha_init": 1.05}, "weak": {"fs_alpha_init": 0.3},
                "closed": {"fs_seed_scale": 0.0}, "harmful": {"fs_alpha_init": -1.0}, "late": {"fs_layer_start": 7}},
    bsz=8, quick_steps=4, medium_steps=6, first={"question": "first"}, time_limit=30.0,
)  # fmt: skip


@pytest.fixture
def search(tmp_path):
    """Start a search over the stand-in -> its process; .home, .log (runs begun) and .records() besides."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "task.py").write_text("")

    def start(env=(), **changes) -> subprocess.Popen:
        config = dict(task_config=str(tmp_path / "task.py")) | CONFIG | changes
        (tmp_path / "find.py").write_text("".join(f"{k} = {v!r}\n" for k, v in config.items()))
        command = [
            sys.executable,
            "-c",
            DRIVER,
            tmp_path / "trainer.py",
            tmp_path / "find.py",
            f"--out_dir={tmp_path}/out",
        ]
        env = os.environ | dict(STUB_LOG=str(tmp_path / "log"), PYTHONPATH=str(ROOT)) | dict(env)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen([str(c) for c in command], cwd=ROOT, env=env, **pipes)

    start.home, start.log = tmp_path / "out" / "find", tmp_path / "log"
    start.records = lambda: records.read_lines(start.home / "records.jsonl")
    return start


def test_protocol_and_records(search):
    process = search()
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    by_stage = {s: [r for r in search.records() if r["stage"] == s] for s in ("quick", "medium", "confirm")}
    assert [r["candidate"] for r in by_stage["quick"]] == ["baseline", *CONFIG["candidates"]]
    words = {j["record"]["candidate"]: j["word"] for j in records.judge(by_stage["quick"], 0.2)}
    assert words == {"strong": "kept", "twin": "same gate as strong", "weak": "kept", "harmful": "pruned",
                     "closed": "no-op: the baseline bit for bit",
                     "late": "failed: error: layer_start seeds no layer"}  # fmt: skip
    assert [r["candidate"] for r in by_stage["medium"]] == ["baseline", "strong", "weak"]
    assert {(r["steps"], r["seed"]) for r in by_stage["medium"]} == {(6, 1)}, "the baseline has the same budget"

    confirm = by_stage["confirm"]
    assert {r["seed"] for r in confirm} == {11, 12, 13, 14, 15}
    assert {r["val_hash"] for r in by_stage["quick"] if r["status"] == "ok"}.isdisjoint(r["val_hash"] for r in confirm)
    expected = {"baseline", "strong", "trained start state", "read twice", "instruction first",
                "instruction first, no seed"}  # fmt: skip
    assert {r["candidate"] for r in confirm if r["seed"] == 12} == expected
    assert {r["candidate"] for r in confirm if r["seed"] == 11} == expected | {"gate forced to zero"}
    fields = (
        "task stage candidate config overrides seed steps tokens bsz status error metrics gate val_hash base_sha256"
    )
    for r in confirm:
        assert set(f"{fields} commit code torch seconds memory_gib run_dir key".split()) <= set(r)
    c = comparison(search.home / "records.jsonl")
    assert c.zero is True
    assert (c.k, c.fresh, c.word()) == (3, True, "helps, as does trained start state") or c.word() == "helps"
    assert 100 * c.effect.mean == pytest.approx(10, abs=1)
    assert "| harmful | " in out
    assert "| pruned |" in out
    assert "The gate forced to zero gives the baseline bit for bit: yes" in out
    assert not list(search.home.glob("runs/*/*/last")), "weights of finished runs are deleted"


def test_killed_anywhere_nothing_is_lost_or_run_twice(search):
    kills, moments = 0, random.Random(0)
    while kills < 3:
        process = search({"STUB_SECONDS": "0.25"}, candidates={"strong": {"fs_alpha_init": 1.0}}, confirm_seeds=[11])
        time.sleep(moments.uniform(0.1, 0.5))
        while process.poll() is None and len(begun(search)) <= kills * 2:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    if (file := search.home / "records.jsonl").exists():
        with open(file, "a") as f:
            f.write('{"key": "half a li')
    process = search({"STUB_SECONDS": "0.25"}, candidates={"strong": {"fs_alpha_init": 1.0}}, confirm_seeds=[11])
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    keys = [r["key"] for r in search.records()]
    assert len(keys) == len(set(keys)) == 4 + 7
    assert sorted(begun(search)) == sorted(keys), "every run began exactly once"


def begun(search) -> list[str]:
    lines = search.log.read_text().splitlines() if search.log.exists() else []
    return [line.split()[0] for line in lines if line.endswith("begun")]


def test_a_finished_search_runs_nothing_and_other_decisions_are_refused(search):
    small = dict(candidates={"weak": {"fs_alpha_init": 0.3}}, prune=50.0)
    out, _ = search(**small).communicate(timeout=60)
    assert "nothing to confirm" in out
    n = len(begun(search))
    search(**small).communicate(timeout=60)
    assert len(begun(search)) == n == 2
    out, _ = search(**small | dict(prune=0.1)).communicate(timeout=60)
    assert "prune has changed since this search began" in out


def test_probe_tells_memory_from_other_failures(search):
    small = dict(candidates={"weak": {"fs_alpha_init": 0.3}}, prune=50.0, bsz=0)
    out, _ = search({"STUB_FITS": "20"}, **small).communicate(timeout=60)
    assert {r["bsz"] for r in search.records() if r["stage"] == "quick"} == {16}
    assert [r["status"] for r in search.records() if r["stage"] == "probe"] == ["ok", "ok", "failed"]
    assert "out of memory" in out


def test_probe_stops_where_data_is_the_reason(search):
    env = {"STUB_FITS": "4", "STUB_ERROR": "error: only 168 of 180 examples could be built"}
    process = search(env, bsz=0)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not for want of memory: error: only 168 of 180" in out


def test_a_run_that_hangs_is_stopped_and_recorded(search):
    process = search(candidates={"hangs": {"fs_alpha_init": 99}}, time_limit=1.5)
    out, _ = process.communicate(timeout=60)
    assert search.records()[-1]["error"] == "time limit of 1.5 s"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(task_config="nowhere.py"), "nowhere.py"),
        (dict(candidates={"x": {"lr": 1.0}}), "lr is no key of the seed"),
        (dict(overrides={"max_steps": 3}), "max_steps is set by the search itself"),
        (dict(published=["heat"]), "'heat' is unknown"),
        (dict(candidates={}), "no candidates"),
        (dict(candidates={"read_twice": {}}), "'read_twice' is taken"),
        (dict(confirm_seeds=[0, 5]), "seed 0 has already chosen"),
        (dict(engine="slurm"), "serial, ray"),
    ],
)
def test_bad_input(search, monkeypatch, script, tmp_path, change, words):
    config = dict(task_config=str(tmp_path / "task.py")) | CONFIG | change
    (tmp_path / "find.py").write_text("".join(f"{k} = {v!r}\n" for k, v in config.items()))
    error, _ = script(tmp_path / "find.py", f"--out_dir={tmp_path}", name="search.py")
    assert_one_sentence(error, [words])


def test_ray_absent_is_one_sentence(search, monkeypatch, script, tmp_path):
    search(candidates={"x": {}}).kill()
    monkeypatch.setitem(sys.modules, "ray", None)
    error, _ = script(tmp_path / "find.py", f"--out_dir={tmp_path}/new", "--engine=ray", name="search.py")
    assert "pip install ray" in error


def write_tiny_search(tmp_path, **changes):
    """Config files task.py and find.py of a search over train_sft.py whose runs take seconds."""
    task = dict(
        task="infill", task_args={"n_digits": 2}, tokenizer="chars:0123456789LMR=|_#", n_layer=2, n_embd=32, threads=1,
        head_size=16, lr=4e-3, bsz=8, n_val=16, eval_bsz=16, fs_alpha_init=0.0, n_show=0,
    )  # fmt: skip
    find = dict(
        task_config=str(tmp_path / "task.py"), candidates={"plain": {}}, bsz=8, quick_steps=2, medium_steps=3,
        confirm_seeds=[7], controls=["gate forced to zero"], prune=-100.0,
    )  # fmt: skip
    for name, values in (("task", task), ("find", find | changes)):
        (tmp_path / f"{name}.py").write_text("".join(f"{k} = {v!r}\n" for k, v in values.items()))


def test_a_real_search_over_train_sft(tmp_path, script, monkeypatch):
    """Tiny, but all the way: the closed gate must equal the baseline bit for bit. One run is a process of its own, the
    others save themselves the seconds that it takes to start one."""
    started = []

    def here(spec, tick):
        folder = ROOT / spec["folder"]
        started.append(folder)
        if len(started) == 1:
            return execute(spec, tick)
        folder.mkdir(parents=True)
        monkeypatch.setattr(sys, "argv", launch.command(spec, folder)[1:])
        runpy.run_path(str(ROOT / "train_sft.py"), run_name="__main__")
        return launch.record_of(spec, folder, "", 0.0)

    monkeypatch.setattr(launch, "execute", here)
    write_tiny_search(tmp_path)
    error, out = script(tmp_path / "find.py", f"--out_dir={tmp_path}", name="search.py")
    assert error is None, out
    assert "bit for bit: yes" in out
    c = comparison(tmp_path / "find" / "records.jsonl")
    assert set(c.controls) == {"no seed", "another row's seed", "a random seed"}
    assert c.word() == "undecided", "one pair proves nothing"
    assert search_tables(tmp_path / "find" / "records.jsonl") in out


def test_two_machines_through_ray_record_what_a_serial_search_does(tmp_path, script):
    """Each of the two has a processor, so two runs go at a time; the records are those of a serial search."""
    ray = pytest.importorskip("ray", reason="pip install ray: engine=ray is optional")
    from ray.cluster_utils import Cluster

    write_tiny_search(tmp_path, candidates={"plain": {}, "half": {"fs_seed_scale": 0.5}}, confirm_seeds=[7, 8])
    assert script(tmp_path / "find.py", f"--out_dir={tmp_path}/serial", name="search.py")[0] is None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        error, out = script(tmp_path / "find.py", f"--out_dir={tmp_path}/ray", "--engine=ray", name="search.py")
        assert error is None, out
    finally:
        ray.shutdown()
        cluster.shutdown()
    serial, parallel = (records.read_lines(tmp_path / d / "find" / "records.jsonl") for d in ("serial", "ray"))
    assert [r["key"] for r in serial] == [r["key"] for r in parallel]
    assert len(serial) == 6 + 5
    for a, b in zip(serial, parallel, strict=True):
        assert a["status"] == "ok"
        assert records.numbers(a["metrics"]) == records.numbers(b["metrics"])
        for key in (
            "stage",
            "candidate",
            "overrides",
            "steps",
            "seed",
            "tokens",
            "bsz",
            "val_hash",
            "gate",
            "curve",
            "code",
        ):
            assert a[key] == b[key], key


def run_of(candidate: str, accuracy: float, **changes) -> dict:
    config = dict(task="t", lr=1.0, seed=0, fs_layer_start=1, fs_norm=True, bsz=8) | changes.pop("config", {})
    return dict(
        key=candidate, stage="quick", candidate=candidate, steps=4, tokens=32, bsz=8, seed=0, val_hash="v", code="c",
        base_sha256=None, torch="2", status="ok", error="", metric="accuracy", config=config, seconds=1.0, gate=[],
        metrics=dict(accuracy=accuracy, training_seconds=random.random()), curve=[[4, accuracy]],
    ) | changes  # fmt: skip


@pytest.mark.parametrize("key", ["steps", "tokens", "bsz", "val_hash", "base_sha256", "code", "torch"])
def test_unequal_runs_are_not_paired(key):
    with pytest.raises(UserError, match=f"the runs differ in {key}"):
        records.judge([run_of("baseline", 0.5), run_of("a", 0.6, **{key: 5})], 0.2)


def test_unequal_settings_are_not_paired():
    with pytest.raises(UserError, match="the runs differ in lr"):
        records.judge([run_of("baseline", 0.5), run_of("a", 0.6, config=dict(lr=2.0))], 0.2)


def test_duplicates_by_effective_gate():
    runs = [
        run_of("baseline", 0.5), run_of("a", 0.6, gate=[0.1, 0.2]), run_of("b", 0.61, gate=[0.109, 0.19]),
        run_of("c", 0.6, gate=[0.1, 0.25]), run_of("d", 0.62, gate=[0.1, 0.2], config=dict(fs_norm=False)),
        run_of("e", 0.63, gate=[0.2], config=dict(fs_layer_start=2)), run_of("f", 0.5, gate=[0.002]),
    ]  # fmt: skip
    judged = {j["record"]["candidate"]: j["word"] for j in records.judge(runs[:-1], 0.2)}
    assert judged == {"a": "kept", "b": "same gate as a", "c": "kept", "d": "kept", "e": "kept"}
    assert records.judge([runs[0], runs[-1]], -9)[0]["word"] == "no-op: the baseline bit for bit"
    assert records.tried(records.judge(runs[:-1], 0.2)) == 4


def test_an_orphan_is_waited_for(tmp_path, monkeypatch):
    """A run whose search was killed still holds its directory: the next search takes its result, and starts nothing."""
    folder = tmp_path / "run"
    (folder / "task-1").mkdir(parents=True)
    code = (
        "import fcntl, sys, time\nf = open(sys.argv[1] + '/lock', 'w')\n"
        "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True)\n"
        "time.sleep(1); open(sys.argv[1] + '/task-1/metrics.jsonl', 'w').close()\n"
        "open(sys.argv[1] + '/task-1/result.json', 'w').write(sys.argv[2])"
    )
    fixed = dict.fromkeys(
        ("base_sha256", "commit", "uncommitted_changes", "torch", "python", "platform", "gpu", "val_hash")
    )
    result = dict(metric="a", levels={}, config=dict(task="t", bsz=1, data_seed=1), result=dict(a=1.0), **fixed)
    orphan = subprocess.Popen([sys.executable, "-c", code, folder, json.dumps(result)], stdout=subprocess.PIPE)
    orphan.stdout.readline()
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a second run was started"))
    spec = dict.fromkeys(("key", "stage", "candidate", "overrides", "steps", "seed", "prune", "code"))
    record = execute(spec | dict(folder=str(folder), time_limit=20.0))
    assert record["status"] == "ok"
    assert record["metrics"] == {"a": 1.0}
    orphan.wait()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("search_*.py")), ids=lambda p: p.stem)
def test_every_search_config_is_valid_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    search = runpy.run_path(str(ROOT / "search.py"))
    g = search["check"].__globals__
    config.override(g, [str(path)])
    search["check"]()
    assert f"python search.py configs/{path.name}" in ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    train = runpy.run_path(str(ROOT / "train_sft.py"))
    for changes in search["all_candidates"]().values():
        assert set(changes) <= set(train), "keys of train_sft.py"
