"""Sudoku, proteins and lists: answers follow from prompts, nothing is shared by the sides, scores by hand."""

import collections
import gzip
import itertools
import json
import math
import re
import zipfile

import numpy as np
import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from tasks import _sudoku, lists, protein_contact, sudoku

BYTES = get_tokenizer("bytes")
RESIDUES = get_tokenizer("chars:ACDEFGHIKLMNPQRSTVWYX0123456789-=_#")


def gold(rows):
    return [e.answer for e in rows]


def contents(rows):
    return [(e.id, e.prompt, e.answer, e.blanks) for e in rows]


def check_rows(make):
    """Rows depend on the seed alone, and both sides are made of different examples."""
    a, b, c = make(0), make(0), make(1)
    assert contents(a.val) == contents(b.val) != contents(c.val)
    assert contents(a.train) == contents(b.train) != contents(c.train)
    assert not {e.id for e in a.train} & {e.id for e in a.val}
    assert max(len(e.answer) for e in a.val) <= a.max_new_tokens
    assert all(e.prompt[i] == RESIDUES.mask_id or e.prompt[i] == BYTES.mask_id for e in a.val for i in e.blanks)
    return a


# --- lists
@pytest.mark.parametrize("question", ["last", "first"])
@pytest.mark.parametrize("kind", lists.KINDS)
def test_lists(kind, question):
    task = check_rows(lambda seed: tasks.build("lists", BYTES, seed, 20, 30, kind=kind, question=question))
    for e in [*task.train, *task.val]:
        text = BYTES.decode(e.prompt)
        assert text.endswith("=")
        pattern = r"([^?;]+);\?([^;]*)=" if question == "last" else r"\?([^;]*);([^?;]+)="
        items, asked = re.fullmatch(pattern, text).groups()[:: 1 if question == "last" else -1]
        items = items.split(",")
        assert len(set(items)) == len(items) == {"nameindex": 64, "middlematch": 96, "kvsort": 7}[kind]
        if kind == "nameindex":
            answer = items[int(asked, 36)]
        elif kind == "middlematch":
            left, right = asked.split(",")
            (answer,) = [b for a, b, c in zip(items, items[1:], items[2:], strict=False) if (a, c) == (left, right)]
        else:
            answer = ",".join(value for _, value in sorted(item.split(":") for item in items))
        assert BYTES.decode(e.answer) == answer


@pytest.mark.parametrize("kind", lists.KINDS)
def test_lists_levels(kind):
    task = tasks.build("lists", BYTES, 0, 10, 250, kind=kind)
    assert task.score(task.val, gold(task.val)) == {"accuracy": 1.0, "exact": 1.0}
    chance, item = task.levels.values()
    n = sum(len(e.answer) for e in task.val)
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))["accuracy"]
    assert abs(rolled - chance) < 4 * (chance * (1 - chance) / n) ** 0.5
    random, picks = np.random.default_rng(0), []
    for e in task.val:  # an item of the list that fits, at random
        items, asked = BYTES.decode(e.prompt)[:-1].split(";?")
        items = [x.split(":")[-1] for x in items.split(",")]
        if kind == "kvsort":
            picks.append(",".join(random.choice(items, len(items))))
        else:
            items = [x for x in items if x not in asked.split(",")] if kind == "middlematch" else items
            picks.append(str(random.choice(items)))
    picked = task.score(task.val, [BYTES.encode(x) for x in picks])["accuracy"]
    assert abs(picked - item) < 4 * (item * (1 - item) / n * 3) ** 0.5  # characters of an item come together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sort"}, "no kind 'sort': choose one of nameindex"),
        ({"question": "middle"}, "last or first"),
        ({"kind": "middlematch", "n_items": 2}, "use 3 to 1296"),
        ({"kind": "kvsort", "n_items": 101}, "use 2 to 100"),
    ],
)
def test_lists_errors(options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("lists", BYTES, 0, 10, 10, **options)


# --- sudoku
def cells_right(board: str) -> bool:
    """The rules, without the module's help."""
    n = int(len(board) ** 0.5)
    b, grid = int(n**0.5), [board[i * n : (i + 1) * n] for i in range(n)]
    boxes = [[grid[r + i][c + j] for i in range(b) for j in range(b)] for r in range(0, n, b) for c in range(0, n, b)]
    return all(sorted(unit) == sorted("123456789"[:n]) for unit in [*grid, *zip(*grid, strict=True), *boxes])


def test_all_boards():
    every = [
        "".join(rows)
        for rows in itertools.product(map("".join, itertools.permutations("1234")), repeat=4)
        if all(len(set(column)) == 4 for column in zip(*rows, strict=True)) and cells_right("".join(rows))
    ]
    assert sorted(_sudoku.solutions("0" * 16, 1000)) == sorted(every)
    assert len(every) == 288
    few = itertools.product(_sudoku.orders(2), _sudoku.orders(2), itertools.permutations(range(1, 5)))
    made = {_sudoku.pattern(*x) for x in few}
    assert len(made) == 96
    assert made < set(every)
    assert len(_sudoku.orders(3)) == len({tuple(x) for x in _sudoku.orders(3)}) == 6**4


def test_solver_counts():
    # a known puzzle of 17 clues, and the same without one of them
    puzzle = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
    (solution,) = _sudoku.solutions(puzzle)
    assert cells_right(solution)
    assert all(p in ("0", s) for p, s in zip(puzzle, solution, strict=True))
    assert len(_sudoku.solutions(puzzle[:7] + "0" + puzzle[8:])) == 2
    assert _sudoku.solutions("11" + "0" * 14) == []
    for seed in range(20):
        random = np.random.default_rng(seed)
        some = "".join(str(d) if random.random() < 0.3 else "0" for d in map(int, _sudoku.draw_board(random, 4, "any")))
        fit = [b for b in _sudoku.solutions("0" * 16, 999) if all(p in ("0", c) for p, c in zip(some, b, strict=True))]
        assert sorted(_sudoku.solutions(some, 999)) == sorted(fit)


@pytest.mark.parametrize("boards", sudoku.KNOWN["boards"])
@pytest.mark.parametrize("form", sudoku.KNOWN["form"])
@pytest.mark.parametrize(("side", "blanks", "where"), [(4, 6, "random"), (4, [4, 8], "suffix"), (9, 20, "prefix")])
def test_sudoku_rows(side, blanks, where, form, boards):
    options = dict(side=side, blanks=blanks, where=where, form=form, boards=boards)
    task = check_rows(lambda seed: tasks.build("sudoku", BYTES, seed, 16, 6, **options))
    names = [{_sudoku.board_name(e.meta["solution"]) for e in rows} for rows in (task.train, task.val)]
    assert not names[0] & names[1]
    for e in [*task.train, *task.val]:
        text, puzzle = BYTES.decode(e.prompt), e.meta["puzzle"]
        if form == "in_place":
            assert text.replace("\1", "0") == puzzle
        else:
            assert re.fullmatch(rf"SUDOKU{side}\|P=(\d+)\|A=", text)[1] == puzzle
        at = [i for i, c in enumerate(puzzle) if c == "0"]
        assert len(at) in ([blanks] if isinstance(blanks, int) else blanks)
        end = {"prefix": list(range(len(at))), "suffix": list(range(side**2 - len(at), side**2))}
        assert at == end.get(where, at)
        answer = BYTES.decode(e.answer)
        full = list(answer if form == "board" else puzzle)
        if form != "board":
            for i, digit in zip(at, answer, strict=True):
                full[i] = digit
        assert cells_right("".join(full))
        assert all(p in ("0", c) for p, c in zip(puzzle, full, strict=True))


@pytest.mark.parametrize(("side", "blanks"), [(4, 10), (9, 45), (9, 52)])
def test_unique_puzzles_have_exact_clues_and_one_solution(side, blanks):
    task = tasks.build("sudoku", BYTES, 0, 3, 6, side=side, blanks=blanks, unique=True)
    for e in [*task.train, *task.val]:
        assert e.meta["puzzle"].count("0") == blanks
        assert _sudoku.solutions(e.meta["puzzle"]) == [e.meta["solution"]]
    assert task.score(task.val, gold(task.val)) == {"blank_accuracy": 1.0, "exact": 1.0, "valid": 1.0}
    with pytest.raises(UserError, match=r"no puzzle .* lower blanks"):
        tasks.build("sudoku", BYTES, 0, 1, 1, unique=True, blanks=14)
    with pytest.raises(UserError, match=r"no puzzle .* lower blanks"):
        tasks.build("sudoku", BYTES, 0, 1, 1, unique=True, blanks=14, where="prefix")


def test_digits_names_dont_make_another_board():
    random = np.random.default_rng(0)
    board = _sudoku.draw_board(random, 9, "pattern")
    renamed = board.translate(str.maketrans("123456789", "918273645"))
    assert _sudoku.board_name(board) == _sudoku.board_name(renamed)
    assert _sudoku.board_name(board) != _sudoku.board_name(_sudoku.draw_board(random, 9, "pattern"))


@pytest.mark.parametrize("form", sudoku.KNOWN["form"])
def test_sudoku_scores(form):
    task = tasks.build("sudoku", BYTES, 0, 10, 200, form=form, boards="any")
    assert task.score(task.val, gold(task.val)) == {"blank_accuracy": 1.0, "exact": 1.0, "valid": 1.0}
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))
    assert abs(rolled["blank_accuracy"] - task.levels["chance"]) < 0.05
    assert rolled["valid"] < 0.01
    short = task.score(task.val, [e.answer[:-1] for e in task.val])
    assert short["exact"] == short["valid"] == 0
    assert task.score(task.val, [[*e.answer, 49] for e in task.val])["valid"] == 0
    assert task.score(task.val, [[0] * len(e.answer) for e in task.val])["blank_accuracy"] == 0


def test_another_valid_completion_counts_as_valid():
    # two pairs of cells whose digits can be swapped
    a, b = "1234341221434321", "2134341212434321"
    assert cells_right(a)
    assert cells_right(b)
    puzzle = "".join(x if x == y else "0" for x, y in zip(a, b, strict=True))
    e = tasks.Example("x", [], [], meta={"puzzle": puzzle, "solution": a})
    score = tasks.build("sudoku", BYTES, 0, 1, 1, form="board").score
    assert score([e], [BYTES.encode(b)]) == {"blank_accuracy": 0.0, "exact": 0.0, "valid": 1.0}
    assert score([e], [BYTES.encode("2" + a[1:])])["valid"] == 0
    # a clue changed, the rules kept
    other = a.translate(str.maketrans("34", "43"))
    assert cells_right(other)
    assert score([e], [BYTES.encode(other)])["valid"] == 0


def test_sudoku_levels():
    task = tasks.build("sudoku", BYTES, 0, 10, 50, boards="any")
    every, best, legal = _sudoku.solutions("0" * 16, 999), [], []
    for e in task.val:
        puzzle = e.meta["puzzle"]
        for i in e.blanks:
            fit = [b for b in every if all(p in ("0", c) for p, c in zip(puzzle[:i], b, strict=False))]
            best.append(max(collections.Counter(b[i] for b in fit).values()) / len(fit))
            r, c = divmod(i, 4)
            near = {
                puzzle[j] for j in range(16) if j // 4 == r or j % 4 == c or (j // 8, j % 4 // 2) == (r // 2, c // 2)
            }
            legal.append(1 / (4 - len(near - {"0"})))
    assert task.levels["causal ceiling"] == pytest.approx(sum(best) / len(best))
    assert task.levels["legal digits"] == pytest.approx(sum(legal) / len(legal))
    assert task.levels["chance"] == 0.25
    exact = tasks.build("sudoku", BYTES, 0, 10, 50, boards="any", metric="exact").levels
    assert exact["chance"] == pytest.approx(0.25**8)
    assert exact["legal digits"] == pytest.approx(np.mean([math.prod(legal[k : k + 8]) for k in range(0, 400, 8)]))


def test_sudoku_file(tmp_path):
    random, rows = np.random.default_rng(1), []
    for _ in range(40):
        solution = _sudoku.draw_board(random, 4, "any")
        rows.append((_sudoku.unique_puzzle(solution, 8, random), solution))
    rows = list(dict(rows).items())
    text = "# made by hand\n" + "".join(
        f"{p.replace('0', '.')}{',' + s if i % 2 else ''}\n" for i, (p, s) in enumerate(rows)
    )
    (tmp_path / "p.txt").write_text(text)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"puzzle": p, "solution": s}) + "\n" for p, s in rows))
    for name in ("p.txt", "p.jsonl"):
        task = check_rows(lambda seed, name=name: tasks.build("sudoku", BYTES, seed, 0, 5, data=str(tmp_path / name)))
        assert len(task.val) == 5
        assert {e.meta["puzzle"]: e.meta["solution"] for e in [*task.train, *task.val]}.items() <= dict(rows).items()
        assert not {e.meta["solution"] for e in task.train} & {e.meta["solution"] for e in task.val}
    (tmp_path / "few.txt").write_text("0" * 16 + "\n" + "12" + "0" * 14 + "\n" + "110" * 5 + "0\n" + rows[0][1])
    with pytest.raises(UserError, match=r"gave 0 of the 2 .* 2 with several .* 1 without a blank"):
        tasks.build("sudoku", BYTES, 0, 0, 1, data=str(tmp_path / "few.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("123", r"p.txt:1 is not a board of 16 digits"),
        ("5" + "0" * 15, r"p.txt:1 is not a board of 16 digits up to 4"),
        ("\n" + "0" * 16 + " " + "1" * 16, r"p.txt:2 has a solution that breaks"),
        ("2" + "0" * 15 + " 1234341221434321", r"p.txt:1 has a solution that breaks the rules or its clues"),
    ],
)
def test_sudoku_bad_files(tmp_path, text, message):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        tasks.build("sudoku", BYTES, 0, 0, 1, data=str(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        ("chars:1234#", {}, "needs a mask token"),
        ("chars:123_#", {}, "no single token for '4'"),
        ("bytes", {"side": 5}, "no side=5: use one of 4, 9"),
        ("bytes", {"form": "row"}, "use one of in_place, board, cells"),
        ("bytes", {"blanks": 16}, "takes 1 to 15"),
        ("bytes", {"where": "prefix", "blanks": 15}, "only .* different validation puzzles"),
    ],
)
def test_sudoku_errors(tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("sudoku", get_tokenizer(tokenizer), 0, 10, 100, **options)


# --- proteins
def made_up(n: int, length: int = 120, seed: int = 0) -> list[dict]:
    """Random sequences, with a helix wherever an A, E or L stands and a strand at V or I; some residues not seen."""
    random, rows = np.random.default_rng(seed), []
    for i in range(n):
        seq = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))
        labels = "".join("H" if c in "AEL" else "E" if c in "VI" else "C" for c in seq)
        mask = "".join("0" if x < 0.2 else "1" for x in random.random(length))
        rows.append(
            {"id": f"p{i}", "seq": seq, "ss3": labels, "mask": mask, "cb": (random.random((length, 3)) * 30).tolist()}
        )
    return rows


def rows_file(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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


# --- contacts
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
        ({}, "none of"),
    ):
        path = rows_file(tmp_path / "e.jsonl", [{"seq": rows[0]["seq"], **bad}])
        with pytest.raises(UserError, match=message):
            build_contact(data=path)


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
