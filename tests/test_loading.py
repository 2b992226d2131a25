"""bench/loading.py: made-up files have the official form, a task that can't be built is named with the reason."""

import numpy as np
import pytest

from bench import loading
from common import run, sandbox
from task_checks import write
from tasks import hotpot, protein_contact, squad


def test_made_up_files_are_read_as_the_official_ones(tmp_path):
    random = np.random.default_rng(0)
    rows = [hotpot.parse(row) for row in loading.hotpot(random, 3)]
    assert {(len(row.needed), len(row.others)) for row in rows} == {(2, 8)}
    articles = loading.squad(random, 2, 5, 23)
    questions = squad.load(write(tmp_path / "s.json", articles))
    assert len({row.name for row in questions}) == 23
    assert len({row.group for row in questions}) == 2
    assert len({row.needed for row in questions}) == 5
    for row in loading.chains(random, 3):
        chain = protein_contact.chain("here", row)
        yes, no = protein_contact.pairs_of(chain, 0, len(chain["seq"]), 8, 8.0)
        assert 0 < len(yes) < len(no)


def test_the_loading_script(script, tmp_path):
    file = tmp_path / "loading.json"
    error, out = script("quickstart", "arc_optionsfirst", f"--json={file}", name="bench/loading.py")
    assert error is None
    record = run.read_json(file)
    (row,) = record["rows"]
    assert (row["key"], row["data"], row["train"], row["val"]) == (["quickstart"], "none", 500 * 32, 256)
    assert row["tokens"] == (500 * 32 + 256) * 40  # a prompt of 32 and an answer of 8
    assert 0.01 < row["rss_gib"] < 0.2  # without torch
    assert "quickstart" in out
    assert "arc_optionsfirst: not measured: 'ARC-Challenge-Train.jsonl' is not below a DIRECTORY" in out
    (tmp_path / "ARC-Challenge-Train.jsonl").write_text("{}\n")
    (tmp_path / "ARC-Challenge-Dev.jsonl").write_text("{}\n")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("1 'a' 1\n")
    error, out = script("arc_optionsfirst", f"--data={tmp_path}", f"--vocab_file={vocab}", name="bench/loading.py")
    assert error is None
    assert "arc_optionsfirst: not measured: " in out
    assert "vocab.txt is not" in out
    assert script("arc", name="bench/loading.py")[0].startswith("error: arc is not measured here: choose from arc_opt")


def test_the_pace_of_the_sandbox(tmp_path):
    if lack := sandbox.missing():
        pytest.skip(f"no containment here: {lack}")
    row = {"text": "Add one.", "code": "def f(x):\n    return x + 1", "test_list": ["assert f(1) == 2"]}
    bad = row | {"task_id": 2, "code": "def f(x):\n    return x"}
    found = loading.programs({"data": write(tmp_path / "m.jsonl", [row | {"task_id": 1}, bad], lines=True)})
    assert (found["programs"], found["solved"]) == (2, 1)
    (_, (_, ((programs, solved, *_),))) = loading.tables(dict(rows=[], sandbox=found))
    assert (programs, solved) == ("2", "1")
