"""Tables say what the records say, refuse what can't be compared, and --check notices every drift."""

import json
from pathlib import Path

import pytest

from conftest import assert_one_sentence

ROOT = Path(__file__).resolve().parents[1]
CONTROLS = ("no seed", "another row's seed", "a random seed")


def compared(seed: int, off: float, on: float, **changes) -> dict:
    """A compare.json."""
    config = dict(seed=seed, max_steps=5, n_val=9, lr=1.0, fs_layer_start=1, task="t", task_args={})
    arms = dict(
        off=dict(accuracy=off, training_seconds=2.0), on=dict(accuracy=on, training_seconds=3.0, gate=[0.3, 0.4])
    )
    arms["on"]["controls"] = {c: dict(accuracy=off) for c in CONTROLS}
    fixed = dict(levels={"chance": 0.1}, val_hash="x", base_sha256=None, commit="c", torch="2")
    return dict(metric="accuracy", config=config, **fixed, **arms) | changes


def single(stage: str, candidate: str, seed: int, accuracy: float, **changes) -> dict:
    """A line of search.py."""
    config = dict(task="protein_ss", task_args={}, seed=seed, fs_layer_start=1, bsz=8, max_steps=6, n_val=9)
    metrics = dict(accuracy=accuracy, training_seconds=2.0 + (candidate == "read twice"))
    seeded, rows = candidate in ("strong", "instruction first"), "search" if stage != "confirm" else "fresh"
    if candidate == "strong" and stage == "confirm":
        metrics |= dict(gate=[0.3], controls={c: dict(accuracy=0.5) for c in CONTROLS})
    config["task_args"] = {"question": "first"} if "first" in candidate else {}
    val_hash = rows + ("first" if "first" in candidate else "")
    return dict(
        kind="run", key=f"{stage}-{candidate}-{seed}", stage=stage, candidate=candidate, seed=seed, steps=6, bsz=8,
        tokens=48, val_hash=val_hash, base_sha256=None, code="c", torch="2", status="ok", error="", prune=0.2,
        metric="accuracy", metrics=metrics, config=config, gate=[0.3] if seeded else [], task="protein_ss",
        curve=[[0, 0.1], [6, accuracy]], levels={"chance": 0.1}, seconds=3.0, memory_gib=1.0,
    ) | changes  # fmt: skip


def searched(n: int = 5) -> list[dict]:
    out = [single("quick", "baseline", 0, 0.5), single("quick", "strong", 0, 0.6),
           single("quick", "poor", 0, 0.4, gate=[0.2])]  # fmt: skip
    for i in range(n):
        off = 0.5 + i / 1000
        arms = {
            "baseline": off,
            "strong": 0.6 + 2 * i / 1000,
            "trained start state": off + 0.001 * (-1) ** i,
            "read twice": off + 0.2,
            "instruction first, no seed": 0.7,
            "instruction first": 0.71 + i / 1000,
        }
        out += [single("confirm", c, 11 + i, a) for c, a in arms.items()]
    return [*out, single("confirm", "gate forced to zero", 11, 0.5, gate=[0.0])]


@pytest.fixture
def files(tmp_path, script):
    """.write(name, rows); .report(*args) -> (error, output)."""

    class Files:
        home = tmp_path

        def write(self, name, rows):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
            return tmp_path / name

        def report(self, *args):
            return script(*args, name="report.py")

    return Files()


def test_a_comparison_by_hand(files):
    path = files.write("r.jsonl", [compared(0, 0.1, 0.5), compared(1, 0.2, 0.7), compared(2, 0.1, 0.6)])
    error, out = files.report(path)
    assert error is None
    # differences .4 .5 .5: mean .4667, sd .0577, t = 14, 2 degrees of freedom; 2 of 8 patterns are as far out
    rows = (
        "| difference, paired | +0.4667 ± 0.0577 |",
        "| +0.3232 to +0.6101; 3 of 3 |",
        "| p: paired t-test; sign flips | 0.0051; 0.2500 |",
        "| training time, on / off | 1.50 ± 0.00 |",
        "with no seed | 0.1333 ± 0.0577 |",
        "| verdict | **undecided** |",
    )
    assert all(row in out for row in rows)
    assert "Verdicts: **helps**" in out, "the rules stand under the table"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(val_hash="y"), "val_hash"),
        (dict(base_sha256="y"), "base_sha256"),
        (dict(commit="y"), "commit"),
        (dict(config=compared(1, 0, 0)["config"] | {"lr": 2.0}), "lr"),
        (dict(config=compared(1, 0, 0)["config"] | {"max_steps": 6}), "max_steps"),
        (dict(config=compared(0, 0, 0)["config"]), "seed 0 stands in it twice"),
    ],
)
def test_seeds_that_differ_in_more_than_the_seed(files, change, word):
    error, _ = files.report(files.write("r.jsonl", [compared(0, 0.1, 0.5), compared(1, 0.2, 0.7) | change]))
    assert error.startswith("error: ")
    assert word in error


def test_a_search(files):
    error, out = files.report(files.write("s.jsonl", searched()))
    assert error is None
    # differences 10.0 10.1 10.2 10.3 10.4: mean 10.2, sd .158, +-2.776 * .158 / sqrt(5) = .196
    assert "| **0.6040 ± 0.0032** | +10.20 ± 0.16 | +10.00 to +10.40 | 5, 0 | < 0.0001 | 0.0625 | 1.00 ± 0.00 |" in out
    assert "| control: trained start state | 0.5022 ± 0.0019 | +0.02 ± 0.11 |" in out
    assert "| control: read twice | 0.7020 ± 0.0016 | +20.00 ± 0.00 |" in out
    assert "| 1.50 ± 0.00 |" in out, "what reading twice costs"
    assert "Future-Seed (to the row above) | 0.7120 ± 0.0016 | +1.20 ± 0.16 |" in out
    assert "Verdict: **helps** (p = < 0.0001; the best of k = 2, chosen on other seeds and rows)" in out
    assert "baseline bit for bit: yes" in out
    assert "| poor | 0.4000 | -10.00 | 0.2 | 3 | pruned |" in out, "negative results stay in the table"


def test_an_effect_that_a_control_shows_too(files):
    rows = searched()
    for r in rows:
        if r["candidate"] == "trained start state":
            r["metrics"]["accuracy"] += 0.105
    assert "Verdict: **helps, as does trained start state**" in files.report(files.write("s.jsonl", rows))[1]


def test_a_choice_on_the_same_rows_is_corrected(files):
    rows = searched()
    for r in rows[:3]:
        r["val_hash"] = "fresh"
    assert (
        "chosen **also on these seeds or rows**: p is corrected for k" in files.report(files.write("s.jsonl", rows))[1]
    )


@pytest.mark.parametrize("key", ["steps", "tokens", "bsz", "val_hash", "base_sha256", "code"])
def test_a_search_whose_arms_differ(files, key):
    rows = searched()
    for r in rows:
        if r["candidate"] == "strong" and r["stage"] == "confirm":
            r[key] = "other"
    error, _ = files.report(files.write("s.jsonl", rows))
    assert f"the runs differ in {key}" in error


def test_a_closed_gate_that_is_not_exact_is_seen(files):
    rows = searched()
    rows[-1]["metrics"]["accuracy"] += 1e-12
    assert "bit for bit: **NO**" in files.report(files.write("s.jsonl", rows))[1]


def test_several_records_and_published_figures(files):
    search = files.write("s.jsonl", searched())
    quick = files.write("q.jsonl", [compared(s, 0.1, 0.2 + s / 100) for s in range(5)])
    out = files.report(search, quick, ROOT / "results" / "published.jsonl")[1]
    assert "| s, accuracy | 5 |" in out
    assert "| q, accuracy | 5 |" in out
    row = next(line for line in out.splitlines() if line.startswith("| s | "))
    assert "+13.31 (round 21)" in row, "published: longer training against shorter"
    assert "-0.80 (5)" in row, "published: equal steps"


def test_published_figures_show_their_budgets(files):
    out = files.report(ROOT / "results" / "published.jsonl")[1]
    assert "| 22 | sudoku 4x4, from layer 6 | 1 | 180 | 650 | **med vs quick** | 58.89 | 92.18 | +33.29 |" in out
    row = next(line for line in out.splitlines() if line.startswith("| 32 |"))
    assert "| -0.80 | -1.48 to -0.12 | 0/5 |" in row


def test_figures(files):
    path = files.write("s.jsonl", searched())
    assert files.report(f"--plot={files.home}/a.png", path)[0] is None
    assert (files.home / "a.png").read_bytes()[1:4] == b"PNG"
    assert files.report(f"--plot={files.home}/a.svg", path, files.write("q.jsonl", [compared(0, 0.1, 0.2)]))[0] is None
    assert "effective gate" in (files.home / "a.svg").read_text() or "<svg" in (files.home / "a.svg").read_text()


STEP, EVAL = dict(kind="train", step=1, loss=2.0, tokens=8, seconds=1.0, memory_gib=1.0), dict(kind="eval", loss=2.5)


def test_the_course_of_a_run(files):
    later = STEP | dict(step=2, loss=1.5, tokens=16, seconds=3.0)
    out = files.report(files.write("metrics.jsonl", [EVAL, STEP, later, EVAL | dict(loss=1.0)]))[1]
    assert "| 2 | 2.00 to 1.50 | 2.50 to 1.00 | 2.00 | 5 | 1.0 GiB |" in out


@pytest.mark.parametrize("rows", [[EVAL], [EVAL, STEP], [STEP, STEP]])
def test_a_run_too_short_for_a_table(files, rows):
    error, _ = files.report(files.write("metrics.jsonl", rows))
    assert_one_sentence(error, ["metrics.jsonl", "at least two training steps"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["{home}"], ["record", "is a directory", "metrics.jsonl", "--collect"]),
        (["{home}", "{home}/r.jsonl"], ["record", "is a directory", "metrics.jsonl"]),
        (["--plot={home}/a.png", "{home}"], ["record", "is a directory"]),
        (["--plot={home}/a.foo", "{home}/r.jsonl"], ["a.foo", "no figure format 'foo'", "png", "svg"]),
        (["--check", "{home}/nowhere.md"], ["document", "nowhere.md does not exist"]),
        (["--check", "{home}"], ["document", "is a directory", "name a file"]),
    ],
)
def test_what_is_not_there_or_no_file(files, args, words):
    files.write("r.jsonl", [compared(0, 0.1, 0.2)])
    assert_one_sentence(files.report(*(a.format(home=files.home) for a in args))[0], words)
    assert [p.name for p in files.home.iterdir()] == ["r.jsonl"], "nothing half written"


def test_collect_refuses_runs_that_differ(files):
    for i, lr in enumerate((1.0, 2.0)):
        run = compared(i, 0.1, 0.2)
        run["config"]["lr"] = lr
        (files.home / str(i)).mkdir()
        (files.home / str(i) / "compare.json").write_text(json.dumps(run))
    error, _ = files.report("--collect", files.home / "all.jsonl", files.home / "0", files.home / "1")
    assert "differ in lr" in error
    assert not (files.home / "all.jsonl").exists()
    assert files.report("--collect", files.home / "all.jsonl", files.home / "0")[0] is None
    assert "0.1000" in files.report(files.home / "all.jsonl")[1]
    error, _ = files.report(files.home / "0" / "compare.json")  # one run is no record yet
    assert "use --collect" in error


class TestCheck:
    @pytest.fixture
    def document(self, files):
        files.write("results/s.jsonl", searched())
        table = files.report(files.home / "results" / "s.jsonl")[1].strip()
        text = f"<!-- report results/s.jsonl -->\n{table}\n<!-- end -->\n"
        text += "It gains <!-- number results/s.jsonl pp -->+10.20<!-- end --> points.\n"
        (files.home / "README.md").write_text(text)
        manifest = {"s.jsonl": dict(what="a search", cited=["README.md"])}
        (files.home / "results" / "manifest.json").write_text(json.dumps(manifest))
        return files.home / "README.md"

    def test_green(self, files, document):
        assert files.report("--check", document)[0] is None

    @pytest.mark.parametrize(("old", "new"), [("0.6040", "0.6041"), ("gains <!-- number results/s.jsonl pp -->+10.20",
                                              "gains <!-- number results/s.jsonl pp -->+10.30")])  # fmt: skip
    def test_red_after_an_edit(self, files, document, old, new):
        assert old in document.read_text()
        document.write_text(document.read_text().replace(old, new))
        error, out = files.report("--check", document)
        assert error == "1"
        assert "README.md" in out

    def test_red_without_the_record(self, files, document):
        (files.home / "results" / "s.jsonl").unlink()
        error, out = files.report("--check", document)
        assert error == "1"
        assert "s.jsonl does not exist" in out

    def test_red_when_a_record_is_in_no_document(self, files, document):
        files.write("results/other.jsonl", searched())
        error, out = files.report("--check", document)
        assert error == "1"
        assert "results/other.jsonl is in no list" in out

    def test_red_when_the_manifest_and_the_document_disagree(self, files, document):
        document.write_text("nothing\n")
        error, out = files.report("--check", document)
        assert error == "1"
        assert "says cited by README.md, it is not" in out
