"""Secondary structure, and what all tasks on proteins share: files, splits without relatives, notes."""

import collections
import gzip
import re
import zipfile

import pytest

import tasks
from common.errors import UserError
from task_checks import BYTES, RESIDUES, check_rows, contents, gold, made_up, rows_file


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    rows = made_up(60)
    return {row["id"]: row for row in rows}, rows_file(tmp_path_factory.mktemp("proteins") / "p.jsonl", rows)


def build_ss(tok=BYTES, seed=0, n_train=80, n_val=20, **options):
    return tasks.build("protein_ss", tok, seed, n_train, n_val, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "first", "where": "suffix", "notes": "fill", "max_prompt_tokens": 900},
        {"notes": "fill", "order": "notes_first", "max_prompt_tokens": 700, "max_residues": 50, "where": "prefix"},
    ],
)
def test_protein_ss_spot(proteins, options):
    rows, path = proteins
    task = check_rows(lambda seed: build_ss(seed=seed, data=path, queries=10, **options))
    notes = {"train": set(), "val": set()}
    for side, examples in (("train", task.train), ("val", task.val)):
        for e in examples:
            text, row = BYTES.decode(e.prompt), rows[e.meta["id"]]
            seq, asked = re.search(r"Sequence: ([A-Z]+)\n", text)[1], re.search(r"from 1\): ([\d ]+)\n", text)[1]
            start = row["seq"].index(seq)
            at = [start + int(x) - 1 for x in asked.split()]
            assert BYTES.decode(e.answer) == "".join(row["ss3"][i] for i in at)
            assert len(at) == 10
            assert {row["mask"][i] for i in at} == {"1"}
            known = [i for i in range(start, start + len(seq)) if row["mask"][i] == "1"]
            assert at == {"prefix": known[:10], "suffix": known[-10:]}.get(options.get("where"), sorted(at))
            assert len(seq) == min(len(row["seq"]), options.get("max_residues", 512))
            assert text.endswith("\nAnswer:")
            assert (text.index("Sequence") < text.index("Positions")) == (options.get("positions") != "first")
            found = re.findall(r"Protein note (p\d+): ", text)
            assert row["id"] not in found
            notes[side].update(found)
            if options.get("notes"):
                assert len(e.prompt) == options["max_prompt_tokens"]
                assert (text.index("Sequence") < text.index("Protein note")) == ("order" not in options)
    train, val = ({e.meta["id"] for e in examples} for examples in (task.train, task.val))
    assert len(val) == 20
    assert not train & val
    assert notes["train"] <= train
    assert notes["val"] <= val
    assert bool(notes["val"]) == bool(options.get("notes"))


@pytest.mark.parametrize(("layout", "lag"), [("below", 0), ("above", 0), ("interleaved", 0), ("interleaved", 3)])
def test_protein_ss_blanks(proteins, layout, lag):
    rows, path = proteins
    task = check_rows(
        lambda seed: build_ss(RESIDUES, seed, data=path, form="blanks", layout=layout, lag=lag, max_residues=40)
    )
    for e in [*task.train, *task.val]:
        text, row = RESIDUES.decode(e.prompt), rows[e.meta["id"]]
        seq = re.sub("[=_]", "", text)
        start, masks = row["seq"].index(seq), [i for i, c in enumerate(text) if c == "_"]
        assert len(seq) == len(masks) == 40
        assert e.blanks == [masks[i] for i in range(40) if row["mask"][start + i] == "1"]
        wanted = [row["ss3"][start + i] for i in range(40) if row["mask"][start + i] == "1"]
        assert RESIDUES.decode(e.answer) == "".join(wanted)
        if layout == "interleaved":  # how many residues stand before the mask of each
            assert [len(re.sub("_", "", text[:i])) for i in masks] == [min(40, i + 1 + lag) for i in range(40)]
        else:
            assert text == (seq + "=" + 40 * "_" if layout == "below" else 40 * "_" + "=" + seq)
    assert (
        len({rows[e.meta["id"]]["seq"].index(re.sub("[=_]", "", RESIDUES.decode(e.prompt))) for e in task.train}) > 20
    )


def test_protein_ss_scores(proteins):
    _, path = proteins
    task = build_ss(data=path, queries=60, n_val=40)
    assert set(task.score(task.val, gold(task.val)).values()) == {1.0}
    count = collections.Counter("".join(e.meta["labels"] for e in task.val))
    assert task.levels["always C"] == count["C"] / count.total() == task.levels["majority"]
    constant = task.score(task.val, [BYTES.encode("C" * 60)] * 40)
    assert constant["q3"] == task.levels["always C"]
    assert (constant["f1 H"], constant["f1 C"]) == (0.0, pytest.approx(2 * count["C"] / (count["C"] + count.total())))
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))["q3"]
    assert abs(rolled - sum((n / count.total()) ** 2 for n in count.values())) < 0.04
    e = tasks.Example("x", [], [], meta={"labels": "HHEC"})
    got = task.score([e], [BYTES.encode("HEE")])  # one too few
    assert got == {"q3": 0.5, "f1 H": pytest.approx(2 / 3), "f1 E": pytest.approx(2 / 3), "f1 C": 0.0}


def test_eight_states_and_their_three(tmp_path):
    dssp = "HGIEBTSC-P~_L  "
    path = rows_file(tmp_path / "a.jsonl", [{"sequence": "ACDEFGHIKLMNPQR"[::k], "label": dssp[::k]} for k in (1, -1)])
    options = dict(data=path, n_train=0, n_val=1, min_residues=1, share=2)
    eight, three = (build_ss(states=states, **options).val[0].meta["labels"] for states in (8, 3))
    assert sorted(eight) == sorted("HGIEBTSC" + 7 * "C")
    assert sorted(three) == sorted("HHHEE" + 10 * "C")
    assert build_ss(states=8, **options).metric == "q8"


def test_relatives_stay_out_of_training(tmp_path):
    a, b, c, d, e = (row["seq"] for row in made_up(5))
    rows = [{"seq": seq, "ss3": "C" * len(seq)} for seq in (b, a, a[:60] + c[:60], a[:25] + d[:95], a[30:90], e)]
    rows[5]["cluster"] = 7
    held = {"seq": a, "ss3": "C" * 120, "cluster": 7}
    path, val = rows_file(tmp_path / "t.jsonl", [*rows, rows[0]]), rows_file(tmp_path / "v.jsonl", [held])
    options = dict(data=path, val_data=val, min_residues=20, n_val=1, n_train=0)
    task = build_ss(**options)
    # the same, half of it, a piece of it and its cluster are out; 16 of 111 words in common are not too many
    assert {re.search("Sequence: (.*)\n", BYTES.decode(x.prompt))[1] for x in task.train} == {b, a[:25] + d[:95]}
    assert len(build_ss(share=0.1, **options).train) == 1
    with pytest.raises(UserError, match=r"0 training .*8 shorter than min_residues=121"):
        build_ss(**options | {"min_residues": 121})
    with pytest.raises(UserError, match=r"2 sharing over 30% of their 10-residue words .*1 repeated"):
        build_ss(**options | {"n_val": 2})


@pytest.mark.parametrize(("task", "n_val"), [("protein_ss", 3), ("protein_ss", 20), ("protein_contact", 3)])
def test_no_seed_validates_on_what_another_trains_on(proteins, task, n_val):
    a, b = (tasks.build(task, BYTES, seed, 0, n_val, data=proteins[1]) for seed in (1234, 1235))
    sides = [[{e.meta["id"] for e in rows} for rows in (t.train, t.val)] for t in (a, b)]
    assert sides[0][0] == sides[1][0]
    assert not sides[0][0] & (sides[0][1] | sides[1][1])
    assert [len(t.val) for t in (a, b)] == [n_val, n_val]
    assert len(sides[0][0]) == 60 - max(6, n_val)
    assert a.removed == ({"for validation, not used": 3} if n_val == 3 else {})
    assert (sides[0][1] != sides[1][1]) == (n_val == 3)


def test_the_number_of_relatives_is_told(tmp_path):
    rows = made_up(10)
    path = rows_file(
        tmp_path / "a.jsonl",
        [*rows, rows[0], *({k: v[1:] if k in ("seq", "ss3", "mask") else v for k, v in row.items()} for row in rows)],
    )
    task = build_ss(data=path, n_train=0, n_val=4)
    assert len(task.train) + len(task.val) + sum(task.removed.values()) == 21
    assert task.removed["repeated"] == 1
    assert len(task.removed) == 2  # the other reason: they are relatives; validation rows themselves are not removed


def test_a_note_that_is_cut_ends_before_the_question(proteins):
    options = dict(notes="fill", order="notes_first", max_prompt_tokens=900)
    for e in build_ss(data=proteins[1], **options).val:
        text = BYTES.decode(e.prompt)
        assert len(e.prompt) == 900
        assert re.search(r"[A-Z]\n\nGive the secondary structure", text)


def test_protein_files(tmp_path):
    rows = made_up(12)
    plain = rows_file(tmp_path / "p.jsonl", rows)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    with zipfile.ZipFile(tmp_path / "flip.zip", "w") as z:
        kinds = ["SET=train VALIDATION=False"] * 8 + ["SET=train VALIDATION=True"] * 3 + ["SET=test VALIDATION=False"]
        parts = {"sequences": [""] * 12, "sampled": kinds, "mask": [""] * 12}
        for name, key in (("sequences", "seq"), ("sampled", "ss3"), ("mask", "mask")):
            text = "".join(f">{r['id']} {k}\n{r[key]}\n" for r, k in zip(rows, parts[name], strict=True))
            z.writestr(f"splits/{name}.fasta", text)
    task, same = (build_ss(n_train=0, n_val=4, data=path) for path in (plain, plain + ".gz"))
    assert contents(task.train) == contents(same.train)
    flip = build_ss(n_train=0, n_val=0, data=str(tmp_path / "flip.zip"))
    assert {e.meta["id"] for e in flip.val} == {"p8", "p9", "p10"}
    assert {e.meta["id"] for e in flip.train} == {f"p{i}" for i in range(8)}
    (tmp_path / "bad.zip").write_bytes(b"PK")
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-4])
    for name in ("bad.zip", "bad.jsonl.gz", "absent.jsonl"):
        with pytest.raises(UserError, match=f"{name} (can't be read|is neither a file)"):
            build_ss(data=str(tmp_path / name))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ss3": "HH"}, r"a.jsonl:1 has none of the fields seq, sequence"),
        ({"seq": "AC"}, r"a.jsonl:1 has none of the fields ss3, ss8"),
        ({"seq": "A1", "ss3": "HH"}, "not letters"),
        ({"seq": "ACD", "ss3": "HH"}, "3 residues, 2 labels, a mask of 3"),
        ({"seq": "AC", "ss3": "HH", "mask": "1"}, "2 residues, 2 labels, a mask of 1"),
        ({"seq": "AC", "ss3": "HX"}, "the label 'X': states=3 knows HEC"),
    ],
)
def test_bad_proteins(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        build_ss(data=rows_file(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("protein_ss", {"states": 5}, "no states=5: use one of 3, 8"),
        ("protein_ss", {"layout": "left"}, "below, above, interleaved"),
        ("protein_ss", {"form": "blanks", "notes": "fill"}, "notes=none"),
        ("protein_ss", {"max_prompt_tokens": 200}, "a question of .* tokens is over max_prompt_tokens=200"),
        ("protein_ss", {"queries": 0}, "at least 1"),
        ("protein_ss", {"n_val": 61}, "found 60 validation and 0 training"),
        ("protein_contact", {"sampling": "even"}, "random, balanced, hard"),
        ("protein_contact", {"contact_share": 1.0}, "contact_share from 0 to 1"),
        ("protein_contact", {"min_sep": 119, "cutoff": 0.1, "sampling": "hard"}, "no contact .* lower min_sep"),
    ],
)
def test_protein_errors(proteins, name, options, message):
    with pytest.raises(UserError, match=message):
        tasks.build(name, BYTES, 0, 10, options.pop("n_val", 5), data=proteins[1], **options)


# --- the real data
def test_real_secondary_structure(data):
    train, val = (str(data(f"protein-ss/flip_netsurfp2_{name}")) for name in ("train.jsonl.gz", "val.jsonl"))
    task = build_ss(data=train, val_data=val, n_train=0, n_val=0, min_residues=20)
    assert len(task.val) == 1080
    assert 9500 < len(task.train) < 9712  # a few share words with a validation protein
    assert set(task.score(task.val, gold(task.val)).values()) == {1.0}
    assert 0.36 < task.levels["always C"] < 0.4
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))["q3"]
    assert abs(rolled - 0.36) < 0.02
