"""Sudoku, 4x4 or 9x9: fill in the blank cells, where they stand or as an answer after the board.

    in_place   1_3__2__...                 the model fills the blanks (mask tokens)
    board      SUDOKU4|P=1030020...|A=     the answer is the whole solved board
    cells      SUDOKU4|P=1030020...|A=     the answer is the digits of the blanks, in order

Puzzles are generated, or come from a file: a puzzle of 16 or 81 characters a line (0, . or _ is a blank), its solution
behind it if you have it, or JSON rows {"puzzle": ..., "solution": ...}. One token a cell: "chars:123456789_#" will do
for in_place, the others need "chars:0123456789SUDOK|P=A_#" (4x4: 4 digits, or 5).

No board is solved on both sides. 9x9 boards that differ only in the names of their digits count as the same board. All
boards of the published generator (boards="pattern") are images of one another under its own shuffles, so nothing
would be left if those counted: it makes 96 of the 288 boards of 4x4, about 31,000 of 9x9 up to the digits' names.
"""

import math
from collections import Counter
from dataclasses import dataclass

from common.errors import UserError
from tasks import Example, Task
from tasks._common import Generated, char_ids, content_id, rng
from tasks._sudoku import blank, blanks_of, chances, draw_board, is_val, legal, load, solutions, solved, unique_puzzle

KNOWN = {
    "side": (4, 9),
    "form": ("in_place", "board", "cells"),
    "where": ("random", "prefix", "suffix"),
    "boards": ("pattern", "any"),
    "metric": ("blank_accuracy", "exact", "valid"),
}


# --- rows
@dataclass
class Puzzles:
    """Makes examples: of a given puzzle, or drawn by side ("train" or "val") and number."""

    tok: object
    ids: dict[str, int]
    seed: int
    side: int
    form: str
    counts: list[int]
    where: str
    unique: bool
    boards: str

    def example(self, puzzle: str, solution: str) -> Example:
        name, at, cells = content_id(puzzle), blanks_of(puzzle), [self.ids.get(c, self.tok.mask_id) for c in puzzle]
        answer = [self.ids[c] for c in (solution if self.form == "board" else (solution[i] for i in at))]
        meta = {"puzzle": puzzle, "solution": solution}
        if self.form == "in_place":
            return Example(name, cells, answer, at, meta)
        before, after = self.tok.encode(f"SUDOKU{self.side}|P="), self.tok.encode("|A=")
        return Example(name, before + cells + after, answer, meta=meta)

    def puzzle(self, solution: str, n_blanks: int, random) -> str | None:
        """None if it was to have one solution, and its blanks at the front or the end leave several."""
        n = len(solution)
        if self.where == "random" and self.unique:
            return unique_puzzle(solution, n_blanks, random)
        if self.where == "random":
            at = random.choice(n, n_blanks, replace=False).tolist()
        else:
            at = range(n_blanks) if self.where == "prefix" else range(n - n_blanks, n)
        puzzle = blank(solution, at)
        return None if self.unique and len(solutions(puzzle)) > 1 else puzzle

    def draw(self, part: str, i: int) -> Example:
        """The i-th puzzle of a part. Each attempt draws its number of blanks anew, so those that fail more are rarer:
        in training on "any" boards of 4x4 with 4 to 12 blanks, .06 of the puzzles have 12 of them, not .11.
        """
        for attempt in range(10_000):
            random = rng(self.seed, part, i, attempt)
            solution = draw_board(random, self.side, self.boards)
            if is_val(solution) != (part == "val"):
                continue
            puzzle = self.puzzle(solution, int(random.choice(self.counts)), random)
            # a small board with several solutions might stand on the other side with another of them
            several = puzzle and part == "train" and self.side == 4 and not self.unique
            if puzzle and not (several and any(map(is_val, solutions(puzzle, 300)))):
                return self.example(puzzle, solution)
        raise UserError(f"sudoku finds no puzzle of blanks={self.counts}, where={self.where} for {part}: lower blanks")


def distinct(make, n: int) -> list[Example]:
    """The first `n` different ones of make(0), make(1), ..."""
    found = {}
    for i in range(50 * n + 100):
        if len(found) == n:
            break
        e = make(i)
        found.setdefault(e.id, e)
    if n < 1 or len(found) < n:
        raise UserError(f"sudoku has only {len(found)} different validation puzzles, n_val={n}: change n_val or blanks")
    return list(found.values())


# --- scores and levels
def causal_ceiling(val: list[Example], boards: dict[str, float]) -> float:
    """The best expected share of blanks right of a reader that has seen only the clues to the left of each.

    It knows how often each of `boards` is drawn, not which are for validation; the places of the blanks say nothing.
    Earlier blanks are masks to it.
    """
    shares = []
    for e in val:
        fit = list(boards)
        for i, clue in enumerate(e.meta["puzzle"]):
            if clue == "0":
                digits = Counter()
                for board in fit:
                    digits[board[i]] += boards[board]
                shares.append(max(digits.values()) / digits.total())
            else:
                fit = [board for board in fit if board[i] == clue]
    return sum(shares) / len(shares)


def levels_of(val: list[Example], side: int, metric: str) -> dict[str, float]:
    """Expected `metric` of random digits in the blanks, and of random ones of those that are legal at their cell.

    valid: every solution counts. No more than two of a 9x9 are looked for: if there are two, it is "at least" so much.
    """
    choices = [legal(e.meta["puzzle"]) for e in val]
    if metric == "blank_accuracy":
        chances = [1 / n for row in choices for n in row]
        return {"chance": 1 / side, "legal digits": sum(chances) / len(chances)}
    limit = 300 if side == 4 else 2
    ways = [len(solutions(e.meta["puzzle"], limit)) if metric == "valid" else 1 for e in val]
    chance = sum(n / side ** len(row) for n, row in zip(ways, choices, strict=True)) / len(val)
    guess = sum(n / math.prod(row) for n, row in zip(ways, choices, strict=True)) / len(val)
    less = ", at least" if max(ways) == limit else ""
    return {f"chance{less}": chance, f"legal digits{less}": guess}


def scorer(tok, digits: str, form: str):
    def score(examples: list[Example], predictions: list[list[int]]) -> dict[str, float]:
        """blank_accuracy: of the blank cells; exact: of boards equal to the stored solution; valid: of boards that
        keep the clues and the rules, whichever solution they are."""
        right = cells = exact = valid = 0
        for e, ids in zip(examples, predictions, strict=True):
            puzzle, solution = e.meta["puzzle"], e.meta["solution"]
            at = blanks_of(puzzle)
            # token by token, so that a token of several characters can't shift the cells behind it
            got = [text if (text := tok.decode([t])) in tuple(digits) else "0" for t in ids]
            if form != "board":
                filled = dict(zip(at, got, strict=False))
                got = [filled.get(i, c) for i, c in enumerate(puzzle)] + got[len(at) :]
            board = "".join(got)
            right += sum(i < len(board) and board[i] == solution[i] for i in at)
            cells, exact = cells + len(at), exact + (board == solution)
            valid += len(board) == len(puzzle) and blank(board, at) == puzzle and solved(board)
        return {"blank_accuracy": right / cells, "exact": exact / len(examples), "valid": valid / len(examples)}

    return score


def build(
    tok,
    seed: int,
    n_train: int,  # of a file: 0 = all
    n_val: int,
    side: int = 4,  # 4 | 9
    form: str = "in_place",  # in_place | board | cells
    blanks: int | list[int] = 8,  # of each generated puzzle; one of a list, drawn anew if the puzzle is turned down
    where: str = "random",  # the blanks: random | prefix | suffix
    unique: bool = False,  # only puzzles with one solution; 9x9 gets slow above 55 blanks
    boards: str = "pattern",  # pattern: shuffles of one board, as published | any: found by search, slower
    data: str = "",  # file of puzzles, instead of generated ones; hard ones without a solution take 0.1 s each
    metric: str = "blank_accuracy",  # what a report quotes: blank_accuracy | exact | valid
) -> Task:
    options = locals()
    for name, values in KNOWN.items():
        if options[name] not in values:
            raise UserError(f"sudoku has no {name}={options[name]!r}: use one of {', '.join(map(str, values))}")
    counts = [blanks] if isinstance(blanks, int) else list(blanks)
    if not counts or not all(1 <= n < side**2 for n in counts):
        raise UserError(f"sudoku with blanks={blanks}: a board of side {side} takes 1 to {side**2 - 1}")
    if n_val < 1 or n_train < (not data):
        raise UserError(f"sudoku with n_train={n_train}, n_val={n_val}: use 1 or more (n_train=0: all of a file)")
    if form == "in_place" and tok.mask_id is None:
        raise UserError(f"sudoku in place needs a mask token, tokenizer {tok.name!r} has none: use 'chars:123456789_#'")
    digits = "0123456789"[form == "in_place" : side + 1]
    make = Puzzles(tok, char_ids(tok, digits), seed, side, form, counts, where, unique, boards)
    if data:
        rows, held, removed = load(data, side, seed, n_train, n_val)
        train, val = Generated(lambda i: make.example(*rows[i]), len(rows)), [make.example(*row) for row in held]
    else:
        train = Generated(lambda i: make.draw("train", i), n_train)
        val = distinct(lambda i: make.draw("val", i), n_val)
        removed = {}
    levels = levels_of(val, side, metric)
    if not data and (side, form, unique, metric) == (4, "in_place", False, "blank_accuracy"):
        levels["causal ceiling"] = causal_ceiling(val, chances(boards))
    longest = max(len(e.answer) for e in val)
    task = Task(train, val, scorer(tok, digits, form), metric, levels, max_new_tokens=longest + 1)
    task.removed = removed
    return task
