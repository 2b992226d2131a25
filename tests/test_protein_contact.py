"""Contacts: asked pairs against coordinates, sampling that gives nothing away, ranking scores."""

import json
import math
import re

import numpy as np
import pytest

import tasks
from common.errors import UserError
from task_checks import BYTES, RESIDUES, check_rows, contents, gold, made_up, rows_file
from tasks import __main__ as view
from tasks import protein_contact


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    rows = made_up(60)
    return {row["id"]: row for row in rows}, rows_file(tmp_path_factory.mktemp("proteins") / "p.jsonl", rows)


def build_contact(tok=BYTES, seed=0, n_train=60, n_val=30, **options):
    return tasks.build("protein_contact", tok, seed, n_train, n_val, **{"val_chains": 15} | options)


@pytest.mark.parametrize("form", ["spot", "blanks"])
@pytest.mark.parametrize("pairs", ["last", "first"])
@pytest.mark.parametrize("sampling", ["random", "balanced", "hard"])
def test_protein_contact(proteins, sampling, pairs, form):
    rows, path = proteins
    tok = BYTES if form == "spot" else RESIDUES
    options = dict(data=path, sampling=sampling, pairs=pairs, form=form, max_residues=80, n_pairs=20)
    task = check_rows(lambda seed: build_contact(tok, seed, **options))
    assert not {e.meta["id"] for e in task.train} & {e.meta["id"] for e in task.val}
    assert len({e.meta["id"] for e in task.val}) == 15
    for e in [*task.train, *task.val]:
        text, row = tok.decode(e.prompt), rows[e.meta["id"]]
        seq = max(re.findall("[A-Z]+", text), key=len)
        start, asked = row["seq"].index(seq), [(int(a), int(b)) for a, b in re.findall(r"(\d+)-(\d+)", text)]
        assert (text.index(seq) < text.index(f"{asked[0][0]}-")) == (pairs == "last")
        at = np.array(row["cb"])[start:]
        close = [bool(np.linalg.norm(at[a - 1] - at[b - 1]) < 8) for a, b in asked]
        assert tok.decode(e.answer) == "".join("01"[c] for c in close)
        assert len(asked) == len(set(asked)) <= 20
        assert all(b - a >= 8 for a, b in asked)
        apart = [[b - a for (a, b), c in zip(asked, close, strict=True) if c == kind] for kind in (True, False)]
        if sampling != "random":
            assert len(apart[0]) == len(apart[1])
        if sampling == "hard":
            assert sorted(apart[0]) == sorted(apart[1])
            assert 4 <= sum(x >= 24 for x in apart[0]) <= 6
        assert e.blanks == [i for i, c in enumerate(text) if c == "_" and form == "blanks"]


def test_protein_contact_scores(proteins):
    _, path = proteins
    task = build_contact(data=path, sampling="balanced", n_val=60)
    assert set(task.score(task.val, gold(task.val)).values()) == {1.0}
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))
    assert abs(rolled["balanced_accuracy"] - task.levels["chance"]) < 0.05
    assert abs(rolled["mcc"]) < 0.1
    no = task.score(task.val, [[48] * len(e.answer) for e in task.val])
    assert (no["balanced_accuracy"], no["mcc"]) == (task.levels["majority"], 0.0) == (0.5, 0.0)
    flipped = task.score(task.val, [[97 - t for t in e.answer] for e in task.val])
    assert (flipped["balanced_accuracy"], flipped["mcc"]) == (0.0, pytest.approx(-1.0))
    assert task.score(task.val, [[] for _ in task.val])["accuracy"] == 0.0
    e = tasks.Example("x", [], [], meta={"asked": [(0, 9), (0, 10), (0, 30), (0, 40)], "contact": [1, 0, 0, 0]})
    got = task.score([e], [BYTES.encode("1100")])
    assert got["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["mcc"] == pytest.approx(2 / (2 * 1 * 3 * 2) ** 0.5)
    assert (got["balanced_accuracy short"], got["balanced_accuracy long"]) == (0.5, 1.0)


def test_separation_level_is_the_best_threshold(proteins):
    rows, path = proteins
    assert build_contact(data=path, sampling="hard").levels["separation"] == 0.5
    task = build_contact(data=path, sampling="balanced", cutoff=12.0)
    best = 0
    for t in range(200):
        guess = [[49 if b - a < t else 48 for a, b in e.meta["asked"]] for e in task.val]
        best = max(best, task.score(task.val, guess)["balanced_accuracy"])
    assert task.levels["separation"] == pytest.approx(best)


def test_ranking_functions():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, 60) + random.random(60) * (random.random(60) < 0.5), random.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert protein_contact.auroc(scores, labels) == pytest.approx(np.mean(pairs))
    hard = scores > 3
    assert protein_contact.auroc(hard, labels) == pytest.approx(
        protein_contact.rates(labels, hard)["balanced_accuracy"]
    )
    assert math.isnan(protein_contact.auroc([1, 2], [1, 1]))
    assert protein_contact.precision_at([3, 2, 1, 0], [1, 0, 1, 1], 2) == 0.5
    assert protein_contact.precision_at([3, 2, 2, 0], [1, 0, 1, 1], 2) == 0.75
    assert protein_contact.precision_at(hard, labels, int(hard.sum())) == pytest.approx(labels[hard].mean())


def test_odds_rank_the_pairs(proteins):
    rows, path = proteins
    task = build_contact(data=path, n_pairs=0, max_residues=40, max_prompt_tokens=6000)
    assert task.contrast == (ord("1"), ord("0"))
    assert {len(e.answer) for e in task.val} == {32 * 33 // 2}  # all that are 8 or more apart among 40
    random, precisions = np.random.default_rng(0), []
    odds = [random.normal(size=len(e.answer)).tolist() for e in task.val]
    for e, row in zip(task.val, odds, strict=True):
        far = [(x, c) for x, c, (a, b) in zip(row, e.meta["contact"], e.meta["asked"], strict=True) if b - a >= 24]
        precisions.append(sum(c for _, c in sorted(far, reverse=True)[:8]) / 8)
    found = task.score_odds(task.val, odds)
    labels = [c for e in task.val for c in e.meta["contact"]]
    assert (
        found["auroc"]
        == protein_contact.auroc([x for row in odds for x in row], labels)
        == pytest.approx(0.5, abs=0.05)
    )
    assert found["precision at L/5"] == pytest.approx(np.mean(precisions))
    gold_odds = [[2.0 * c - 1 for c in e.meta["contact"]] for e in task.val]
    far = [[c for c, (a, b) in zip(e.meta["contact"], e.meta["asked"], strict=True) if b - a >= 24] for e in task.val]
    found = task.score_odds(task.val, gold_odds)
    assert found == {"auroc": 1.0, "precision at L/5": pytest.approx(np.mean([min(1, sum(x) / 8) for x in far]))}
    assert task.score_odds(task.val, [[] for _ in task.val]) == {"auroc": 0.0, "precision at L/5": 0.0}


def test_odds_of_sampled_pairs(proteins):
    task = build_contact(data=proteins[1], sampling="balanced")
    rolled = [[2.0 * (t == ord("1")) - 1 for t in e.answer] for e in task.val[1:] + task.val[:1]]
    hard = task.score(task.val, gold(task.val[1:] + task.val[:1]))
    assert task.score_odds(task.val, rolled) == {"auroc": pytest.approx(hard["balanced_accuracy"])}  # no L/5 of some


def test_a_run_records_what_the_odds_say(proteins, script, tmp_path):
    options = dict(data=proteins[1], val_chains=4, form="blanks", n_pairs=0, max_residues=32, min_sep=20)
    options = [f"--task_args.{key}={value}" for key, value in options.items()]
    sizes = ["--n_layer=1", "--n_embd=64", "--max_steps=0", "--n_train=8", "--n_val=4", "--future_seed=False"]
    rest = [f"--tokenizer={RESIDUES.name}", f"--out_dir={tmp_path}"]
    error, _ = script("--task=protein_contact", *options, *sizes, *rest)
    assert error is None
    (result,) = tmp_path.glob("*/result.json")
    found = json.loads(result.read_text())["result"]
    assert 0 <= found["auroc"] <= 1
    assert 0 <= found["precision at L/5"] <= 1


def test_the_view_ranks_gold_answers_first(proteins, capsys):
    view.main(["protein_contact", f"--data={proteins[1]}", "--tokenizer=bytes", "--n_val=10", "--sampling=balanced"])
    assert re.search(r"(?m)^gold answers .* \| auroc 1\.0000$", capsys.readouterr().out)


def test_contacts_from_a_list_or_coordinates(tmp_path):
    rows = made_up(6)
    for row in rows:
        at = np.array(row["cb"])
        near = np.linalg.norm(at[:, None] - at[None], axis=2) < 8
        row["contacts"] = np.argwhere(np.triu(near, 8)).tolist()
    coordinates = rows_file(tmp_path / "a.jsonl", rows)
    listed = rows_file(tmp_path / "b.jsonl", [{k: v for k, v in r.items() if k != "cb"} for r in rows])
    tertiary = rows_file(tmp_path / "c.jsonl", [{"name": r["id"], "seq": r["seq"], "tertiary": r["cb"],
                                                  "valid_mask": [True] * 120} for r in rows])  # fmt: skip
    a, b, c = (build_contact(data=path, val_chains=3, sampling="hard") for path in (coordinates, listed, tertiary))
    assert contents(a.val) == contents(b.val) == contents(c.val)
    rows[0]["valid_mask"] = [False] * 100 + [True] * 20
    rows[1]["cb"] = [[None, None, None]] * 100 + rows[1]["cb"][100:]
    one = rows_file(tmp_path / "d.jsonl", rows)
    masked = build_contact(data=one, val_chains=3, n_train=40, min_sep=3)
    first = [e for e in [*masked.train, *masked.val] if e.meta["id"] in ("p0", "p1")]
    assert first
    assert all(a >= 100 and b >= 100 for e in first for a, b in e.meta["asked"])
    for bad, message in (
        ({"cb": [[0, 0, 0]]}, "coordinates of shape"),
        ({"cb": rows[2]["cb"], "valid_mask": [True]}, "valid_mask of 1"),
        ({"contacts": [[0, 120]]}, "not pairs"),
        ({"contacts": [[0, 1], [2]]}, "not lists of numbers"),
        ({}, "none of"),
    ):
        path = rows_file(tmp_path / "e.jsonl", [{"seq": rows[0]["seq"], **bad}])
        with pytest.raises(UserError, match=message):
            build_contact(data=path)


# --- the real data
def test_real_contacts(data):
    path = str(data("protein-contacts/chains.jsonl"))
    chains = {row["id"]: row for row in map(json.loads, data("protein-contacts/chains.jsonl").read_text().splitlines())}
    task = build_contact(data=path, val_chains=12, min_residues=60, sampling="hard", n_val=40)
    assert task.score(task.val, gold(task.val))["mcc"] == pytest.approx(1.0)
    clusters = [{chains[e.meta["id"]]["cluster"] for e in rows} for rows in (task.train, task.val)]
    assert not clusters[0] & clusters[1]
    for e in task.val:  # against the list in the file, which was made by another program
        seq = re.search("Sequence: (.*)\n", BYTES.decode(e.prompt))[1]
        start, listed = chains[e.meta["id"]]["seq"].index(seq), set(map(tuple, chains[e.meta["id"]]["contacts"]))
        assert [(a + start, b + start) in listed for a, b in e.meta["asked"]] == [bool(c) for c in e.meta["contact"]]
