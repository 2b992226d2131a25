"""train_latent.py as its users run it: records, resume, stages, cached latents, mistakes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from common import latent_tables, run
from common.errors import UserError
from conftest import ROOT, assert_one_sentence, random_model

TINY = """
task_args = {"question": "first", "data": %r}
n_val = 6
max_bytes = 300
n_latents = 3
width = 16
n_layer = 1
n_head = 2
bsz = 4
epochs = 2
warm_steps = 2
log_every = 1
save_every = 3
n_show = 1
max_new_tokens = 3
lr = 1e-3
"""


@pytest.fixture
def tiny(tmp_path):
    """Path of a config whose runs take a second, on a random RWKV-7 of bytes."""
    articles = []
    for a in range(6):
        context = f"Article {a}. The mill was built in 18{a}0 by Anna{a}. It stands in Ulm{a}, near the river."
        asked = {"When?": f"18{a}0", "Who?": f"Anna{a}", "Where is it?": f"Ulm{a}"}
        qas = [{"question": q, "answers": [{"text": t, "answer_start": context.index(t)}]} for q, t in asked.items()]
        articles.append({"title": f"t{a}", "paragraphs": [{"context": context, "qas": qas}]})
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    random_model(2, 32, 256, 16).save(tmp_path / "m.pth")
    more = f"models = [{str(tmp_path / 'm.pth')!r}]\nout_dir = {str(tmp_path / 'out')!r}\n"
    (tmp_path / "tiny.py").write_text(TINY % str(tmp_path / "squad.json") + more)
    return tmp_path / "tiny.py"


@pytest.fixture
def latent_run(script, tmp_path):
    """Run train_latent.py -> (its last message if it failed, or None, what it printed, the directory it wrote)."""

    def start(*args, out="out"):
        error, printed = script(
            *args, *([] if out is None else [f"--out_dir={tmp_path / out}"]), name="train_latent.py"
        )
        found = sorted((tmp_path / (out or "out")).glob("*")) or [None]
        return error, printed, found[-1]

    return start


def losses_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in rows if r["kind"] == "train"]
    return train, [{k: v for k, v in r.items() if k != "seconds"} for r in rows if r["kind"] == "eval"]


def test_a_run_leaves_a_complete_record(tiny, latent_run):
    was = hashlib.sha256((tiny.parent / "m.pth").read_bytes()).hexdigest()
    more = {"squad": {"data": str(tiny.parent / "squad.json"), "max_answer_tokens": 5}}  # 12 fit, less one article
    error, out, folder = latent_run(tiny, f"--extra={more}")
    assert error is None, error
    result = json.loads((folder / "result.json").read_text())
    assert result["base_sha256"] == {str(tiny.parent / "m.pth"): was}
    assert hashlib.sha256((tiny.parent / "m.pth").read_bytes()).hexdigest() == was
    scores = result["result"]["models"]["m"]
    assert set(scores) == {"text", "latent", "shuffled latent", "token budget", "no context", "prefix"}
    for kind in set(scores) - {"prefix"}:
        assert set(scores[kind]) == {"em", "f1", "nll", "first1", "first5"}
    assert scores["latent"]["nll"] != scores["shuffled latent"]["nll"]
    assert set(scores["prefix"]) == {"std", "rms", "embedding_rms", "between_rows", "scale"}
    train, evals = losses_of(folder)
    assert [s for s, *_ in train] == list(range(1, 13)), "2 of the warm start, 2 epochs of (12 + 10) // 4 = 5"
    assert [e["step"] for e in evals] == [2, 7, 12]
    for epoch in range(3):
        names = {
            "encoder.pt",
            "adapter_m.pt",
            "config.json",
            "training_stats.json",
            "metrics.json",
            "predictions.jsonl",
        }
        assert {p.name for p in (folder / f"epoch-{epoch}").iterdir()} == names
    assert len((folder / "epoch-2" / "predictions.jsonl").read_text().splitlines()) == 6
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "| m | shuffled latent |" in out
    assert "class Wire" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("reader", [["bytes"], ["tokens", "--pool=select", "--skip"]])
def test_a_stopped_run_goes_on_with_identical_losses(tiny, latent_run, monkeypatch, reader):
    """Stopped in the middle of an epoch, with a teacher and foreign text in the warm start."""
    settings = ("--kl_weight=0.5", f"--warm_text={ROOT / 'README.md'}", f"--reader={reader[0]}", *reader[1:])
    assert latent_run(tiny, *settings, out="whole")[0] is None
    progress = run.Recorder.progress

    def stop_at_4(self, at, *args):
        progress(self, at, *args)
        run._interrupted = at["step"] == 4

    monkeypatch.setattr(run.Recorder, "progress", stop_at_4)
    error, out, stopped = latent_run(tiny, *settings, out="stopped")
    assert (error, f"--resume={stopped}" in out) == ("130", True)
    monkeypatch.setattr(run.Recorder, "progress", progress)
    assert latent_run(f"--resume={stopped}", out=None)[0] is None
    (whole,) = (tiny.parent / "whole").iterdir()
    assert len(losses_of(whole)[0]) == 8
    assert losses_of(stopped) == losses_of(whole)
    a, b = (torch.load(d / "epoch-2" / "encoder.pt") for d in (stopped, whole))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_second_stage_starts_from_the_first(tiny, latent_run):
    first = latent_run(tiny, "--epochs=1", "--bos=after")[2]
    stage = str(ROOT / "configs" / "latent_stage_b.py")
    error, _, second = latent_run(stage, f"--init={first}", "--epochs=0", out="b")
    assert error is None, error
    settings = json.loads((second / "config.json").read_text())["config"]
    assert (settings["bos"], settings["first_weight"], settings["gain"], settings["n_latents"]) == (
        "none",
        1.0,
        1.15,
        3,
    )
    folders = first / "epoch-1", second / "epoch-0"
    a, b = (torch.load(d / "adapter_m.pt") for d in folders)
    assert all(torch.equal(a[k], b[k]) for k in a)
    rms = [json.loads((d / "metrics.json").read_text())["models"]["m"]["prefix"]["rms"] for d in folders]
    assert rms[1] == pytest.approx(1.15 * rms[0], rel=1e-4)
    error, _, _ = latent_run(stage, f"--init={first / 'epoch-1'}", "--n_latents=5", out="c")
    assert "does not fit" in error


def test_cached_latents_are_the_fresh_ones(tiny, latent_run):
    runs = [latent_run(tiny, "--epochs=0", f"--latents={how}", out=how)[2] for how in ("fresh", "cached")]
    assert losses_of(runs[0])[1] == losses_of(runs[1])[1]


def test_runs_become_one_table_and_a_figure(tiny, latent_run, tmp_path):
    options = ("--reader=tokens", "--pool=select", "--skip", "--epochs=1")
    dirs = [str(latent_run(tiny, *options, f"--n_latents={m}", out=f"m{m}")[2]) for m in (5, 3)]
    record = tmp_path / "latent.jsonl"
    latent_tables.collect(record, dirs)
    assert latent_tables.is_latent(record)
    rows = [line.split(" | ") for line in latent_tables.table(record).splitlines() if line.startswith("| m |")]
    assert [(r[2], r[3]) for r in rows[:8]] == [
        ("-", "text"),
        ("-", "no context"),
        *((m, kind) for m in "35" for kind in ("token budget", "**latent**", "shuffled latent")),
    ]
    result = json.loads((Path(dirs[0]) / "result.json").read_text())["result"]["models"]["m"]
    assert rows[6][4:6] == [f"{result['latent'][k]:.3f}" for k in ("em", "f1")], "M = 5 comes last"
    assert [r[3] for r in rows[8:]] == ["5", "5"], "steps, 2 of them of the warm start"
    latent_tables.figure(record).savefig(tmp_path / "a.png")
    other = latent_run(tiny, *options, "--n_val=4", out="other")[2]
    with pytest.raises(UserError, match="val_hash"):
        latent_tables.collect(record, [*dirs, str(other)])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models=[]"], ["models=[]"]),
        (["--models=['nowhere.pth']"], ["nowhere.pth"]),
        (["--models=['nowhere.gguf']"], ["nowhere.gguf"]),
        (["--devices=['cpu', 'cpu']"], ["devices", "1 models"]),
        (["--skip"], ["skip=True", "reader='tokens'"]),
        (["--pool=select"], ["pool='select'", "reader='tokens'"]),
        (["--width=18"], ["width=18"]),
        (["--n_val=1"], ["n_val", "at least 2"]),
        (["--bsz=100"], ["bsz=100"]),
        (["--bos=maybe"], ["bos", "none, after, before, text"]),
        (["--warm_text=nowhere.txt"], ["nowhere.txt"]),
        (["--init=nowhere"], ["nowhere"]),
        (["--future_seed"], ["seed.pt"]),
        (["--resume=nowhere"], ["nowhere"]),
        (["--lr=1e30", "--grad_clip=0.0", "--warm_steps=0", "--warmup=0"], ["step", "lower rate"]),
    ],
)
def test_mistakes_are_one_sentence(tiny, latent_run, args, words):
    error, _, _ = latent_run(tiny, *args)
    assert_one_sentence(error, words)
