"""Sudoku: the rules, every board counted, unique solutions, files, scores and levels."""

import collections
import itertools
import json
import math
import re

import numpy as np
import pytest

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer
from task_checks import BYTES, Every, check_rows, contents, gold
from tasks import _sudoku, sudoku


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


def drawn(boards: str) -> dict[str, float]:
    """The 4x4 boards by how often they are drawn: all outcomes of all random choices."""
    random, chances = Every(), collections.Counter()
    while True:
        board = _sudoku.draw_board(random, 4, boards)
        chances[board] += random.next()
        if not random.path:
            return chances


@pytest.mark.parametrize(("boards", "number"), [("pattern", 96), ("any", 288)])
def test_chances_of_boards_are_those_of_the_generator(boards, number):
    found = drawn(boards)
    assert len(found) == number
    assert sum(found.values()) == pytest.approx(1)
    assert _sudoku.chances(boards) == pytest.approx(found)


def test_sudoku_levels():
    task = tasks.build("sudoku", BYTES, 0, 10, 50, boards="any")
    every, best, legal, ways = drawn("any"), [], [], []
    for e in task.val:
        puzzle = e.meta["puzzle"]
        ways.append(sum(all(p in ("0", c) for p, c in zip(puzzle, b, strict=True)) for b in every))
        for i in e.blanks:
            digits = collections.Counter()
            for b, chance in every.items():
                digits[b[i]] += chance * all(p in ("0", c) for p, c in zip(puzzle[:i], b, strict=False))
            best.append(max(digits.values()) / sum(digits.values()))
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
    guess = np.array([math.prod(legal[k : k + 8]) for k in range(0, 400, 8)])
    assert exact["legal digits"] == pytest.approx(guess.mean())
    valid = tasks.build("sudoku", BYTES, 0, 10, 50, boards="any", metric="valid").levels
    assert max(ways) > 1
    assert valid["chance"] == pytest.approx(np.mean(ways) * 0.25**8)
    assert valid["legal digits"] == pytest.approx((guess * ways).mean())


def test_chance_of_a_valid_board_is_that_of_all_fillings():
    puzzle = "0034341200434321"  # the digits 1 and 2 can be swapped
    e = tasks.Example("x", [], [0] * 4, [0, 1, 8, 9], {"puzzle": puzzle, "solution": "1234341221434321"})
    score, digits = tasks.build("sudoku", BYTES, 0, 1, 1).score, BYTES.encode("1234")
    scores = [score([e], [list(filling)])["valid"] for filling in itertools.product(digits, repeat=4)]
    assert sudoku.levels_of([e], 4, "valid") == {"chance": np.mean(scores), "legal digits": 2 / 16}
    assert sudoku.levels_of([e], 4, "exact") == {"chance": 1 / 256, "legal digits": 1 / 16}
    # of a 9x9 with several solutions not all are counted
    one = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
    for puzzle, names in ((one, ["chance", "legal digits"]), (one[:7] + "0" + one[8:], ["chance, at least"])):
        found = sudoku.levels_of([tasks.Example("x", [], [], meta={"puzzle": puzzle})], 9, "valid")
        assert list(found)[: len(names)] == names


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


@pytest.mark.parametrize(("n_train", "n_val"), [(0, 9), (0, 60), (20, 9)])
def test_no_seed_validates_on_boards_that_another_trains_on(tmp_path, n_train, n_val):
    random, lines = np.random.default_rng(2), {}
    while len(lines) < 100:  # 100 puzzles of fewer boards
        solution = _sudoku.draw_board(random, 4, "any")
        lines[_sudoku.unique_puzzle(solution, 6, random)] = solution
    (tmp_path / "p.txt").write_text("\n".join(lines))
    a, b = (tasks.build("sudoku", BYTES, seed, n_train, n_val, data=str(tmp_path / "p.txt")) for seed in (0, 1))
    boards = [[{e.meta["solution"] for e in rows} for rows in (t.train, t.val)] for t in (a, b)]
    assert not (boards[0][0] | boards[1][0]) & (boards[0][1] | boards[1][1])
    for t in (a, b):
        assert len({e.id for e in t.val}) == n_val
        assert len(t.train) == n_train or len(t.train) + n_val + sum(t.removed.values()) == 100
    assert ({e.id for e in a.val} != {e.id for e in b.val}) == (n_val == 9)
    assert (contents(a.val) == contents(b.val)) == (n_val == 60)


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
