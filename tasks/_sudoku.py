"""Sudoku: rules, solver, generators, files. A board is a string of side * side digits, 0 is a blank."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator

from common.errors import UserError
from tasks._common import content_id, held_out
from tasks._text import read_rows, read_text


@functools.cache
def units(side: int) -> list[tuple[int, int, int]]:
    """Row, column and box of every cell, as indices into one list of 3 * side units."""
    base = math.isqrt(side)
    return [(i, side + j, 2 * side + i // base * base + j // base) for i in range(side) for j in range(side)]


def candidates(board: str) -> list[int] | None:
    """What each unit may still take, as bit masks (bit d for digit d); None if the board contradicts itself."""
    side = math.isqrt(len(board))
    free = [(2 << side) - 2] * (3 * side)
    for digit, mine in zip(map(int, board), units(side), strict=True):
        for u in mine if digit else ():
            if not free[u] >> digit & 1:
                return None
            free[u] ^= 1 << digit
    return free


def solutions(board: str, limit: int = 2, random=None) -> list[str]:
    """The first `limit` solutions; `random` shuffles the digits that are tried, else they come in order.

    Depth first, the most constrained cell first, so a puzzle for people needs hardly any backtracking.
    """
    found, cells, free, of = [], list(map(int, board)), candidates(board), units(math.isqrt(len(board)))
    blanks = [i for i, digit in enumerate(cells) if not digit]

    def search() -> bool:
        """Whether to stop."""
        if not blanks:
            found.append("".join(map(str, cells)))
            return len(found) == limit
        fewest, best, at = 99, 0, 0
        for k, i in enumerate(blanks):
            r, c, b = of[i]
            may = free[r] & free[c] & free[b]
            if (n := may.bit_count()) < fewest:
                fewest, best, at = n, may, k
                if n < 2:
                    break
        digits = [d for d in range(1, best.bit_length()) if best >> d & 1]
        i = blanks.pop(at)
        for d in random.permutation(digits).tolist() if random and fewest > 1 else digits:
            cells[i] = d
            for u in of[i]:
                free[u] ^= 1 << d
            if search():
                return True
            for u in of[i]:
                free[u] ^= 1 << d
        cells[i] = 0
        blanks.insert(at, i)
        return False

    if free is not None:
        search()
    return found


@functools.cache
def orders(base: int) -> list[list[int]]:
    """Every order of rows that shuffles bands, and rows within bands."""
    within = list(itertools.permutations(range(base)))
    return [
        [band * base + row for band, rows in zip(bands, inner, strict=True) for row in rows]
        for bands in within
        for inner in itertools.product(within, repeat=base)
    ]


def pattern(rows: list[int], columns: list[int], digits: list[int]) -> str:
    """The board whose row i is row 0 shifted by base * (i % base) + i // base, shuffled."""
    side = len(rows)
    base = math.isqrt(side)
    return "".join(str(digits[(base * (i % base) + i // base + j) % side]) for i in rows for j in columns)


def draw_board(random, side: int, boards: str) -> str:
    if boards == "any":
        return solutions("0" * side**2, 1, random)[0]
    every, digits = orders(math.isqrt(side)), (1 + random.permutation(side)).tolist()
    rows, columns = (every[i] for i in random.integers(len(every), size=2))
    return pattern(rows, columns, digits)


def chances(boards: str) -> dict[str, float]:
    """The 4x4 boards that draw_board makes, and how likely each is."""
    if boards == "pattern":
        shuffles = itertools.product(orders(2), orders(2), itertools.permutations(range(1, 5)))
        made = sorted({pattern(*x) for x in shuffles})
        return dict.fromkeys(made, 1 / len(made))
    every = solutions("0" * 16, 300)
    # the search fills the upper half first, with all 96 equally likely, and then the lower one in one of 2 or 4 ways
    ways = Counter(board[:8] for board in every)
    return {board: 1 / (len(ways) * ways[board[:8]]) for board in every}


def solved(board: str) -> bool:
    return "0" not in board and candidates(board) is not None


def blank(solution: str, at) -> str:
    at = set(at)
    return "".join("0" if i in at else c for i, c in enumerate(solution))


def blanks_of(puzzle: str) -> list[int]:
    return [i for i, c in enumerate(puzzle) if c == "0"]


def unique_puzzle(solution: str, n_blanks: int, random) -> str:
    """A puzzle of exactly `n_blanks` blanks and one solution: cells are blanked in random order where that keeps it."""
    for _ in range(256):
        puzzle, left = solution, n_blanks
        for i in random.permutation(len(solution)).tolist():
            if not left:
                return puzzle
            less = blank(puzzle, (i,))
            free = candidates(less)
            r, c, b = units(math.isqrt(len(less)))[i]
            # no need to solve if the cell's own units leave one digit: then every solution has it
            if (free[r] & free[c] & free[b]).bit_count() == 1 or len(solutions(less)) == 1:
                puzzle, left = less, left - 1
        if not left:
            return puzzle
    raise UserError(f"sudoku found no puzzle of {n_blanks} blanks with one solution: lower blanks, or set unique=False")


def legal(puzzle: str) -> list[int]:
    """How many digits the clues in its row, column and box leave to each blank."""
    free, of = candidates(puzzle), units(math.isqrt(len(puzzle)))
    return [(free[r] & free[c] & free[b]).bit_count() for (r, c, b), d in zip(of, puzzle, strict=True) if d == "0"]


# --- sides
def board_name(solution: str) -> str:
    """What decides the side of a board: the same for all names of its digits if it is a 9x9."""
    if len(solution) == 81:
        new = {}
        solution = "".join(new.setdefault(c, str(len(new) + 1)) for c in solution)
    return content_id(solution)


def is_val(solution: str) -> bool:
    """Of the few 4x4 boards 1 in 4 is for validation, else 1 in 10."""
    return held_out(board_name(solution), 4 if len(solution) == 16 else 10)


# --- the user's file
def read_puzzles(path: str, side: int) -> Iterator[tuple[str, str, str]]:
    """(where it stands, puzzle, solution or "") of a file."""
    if str(path).endswith((".json", ".jsonl")):
        found = [(at, row.get("puzzle"), row.get("solution", "")) for at, row in read_rows(path)]
    else:
        lines = [(at, line.replace(",", " ").split()) for at, line in enumerate(read_text(path).split("\n"), 1)]
        found = [(at, words[0], "".join(words[1:2])) for at, words in lines if words and words[0][0] != "#"]
    for at, puzzle, solution in found:
        puzzle, solution = (str(text or "").replace(".", "0").replace("_", "0") for text in (puzzle, solution))
        for text in filter(None, (puzzle or "?", solution)):
            if len(text) != side**2 or not set(text) <= set("0123456789"[: side + 1]):
                raise UserError(f"{path}:{at} is not a board of {side**2} digits up to {side}: mend it, or set side")
        yield f"{path}:{at}", puzzle, solution


def usable(different: dict[str, tuple[str, str]], seed: int, removed: Counter) -> Iterator[tuple[str, str]]:
    """(puzzle, solution) of {puzzle: (where it stands, solution or "")}, in an order set by seed and content.

    Each is solved when it is asked for; those without a blank or with several solutions are left out.
    """
    for puzzle in sorted(different, key=lambda puzzle: content_id(f"{seed} {puzzle}")):
        where, solution = different[puzzle]
        if solution and not (solved(solution) and blank(solution, blanks_of(puzzle)) == puzzle):
            raise UserError(f"{where} has a solution that breaks the rules or its clues: mend or remove the line")
        found = [solution] if solution else solutions(puzzle)
        if "0" in puzzle and len(found) == 1:
            yield puzzle, found[0]
        else:
            removed["without a blank" if "0" not in puzzle else f"with {'several' if found else 'no'} solutions"] += 1


def load(path: str, side: int, seed: int, n_train: int, n_val: int) -> tuple[list, list, dict]:
    """-> training and validation (puzzle, solution), {reason: how many were removed}.

    Boards have their sides from `is_val`, so that no seed validates on what another one trains on. If that gives fewer
    than n_val, others join them, again whatever the seed. Only as many puzzles are solved as that takes.
    """
    removed, val, train, different = Counter(), [], [], {}
    for where, puzzle, solution in read_puzzles(path, side):
        removed["repeated"] += puzzle in different
        different[puzzle] = where, solution
    for row in usable(different, seed, removed):
        (val if is_val(row[1]) else train).append(row)
        if len(val) >= n_val and 0 < n_train <= len(train):
            break
    if len(val) < n_val:
        more = sorted(train, key=lambda row: (board_name(row[1]), row))[: n_val - len(val)]
        taken = {board_name(solution) for _, solution in more}
        rest = [row for row in train if board_name(row[1]) not in taken]
        removed["with a validation board"] = len(train) - len(more) - len(rest)
        val, train = val + more, rest
    removed["for validation, not used"] = max(0, len(val) - n_val)
    # by content: if two seeds take the same rows, their hashes are the same
    val, train = sorted(val[:n_val], key=lambda row: content_id(row[0])), train[: n_train or None]
    if len(val) < n_val or len(train) < max(1, n_train):
        reasons = ", ".join(f"{n} {reason}" for reason, n in removed.items() if n) or "none was removed"
        raise UserError(
            f"{path} gave {len(val) + len(train)} of the {n_val + max(1, n_train)} puzzles wanted ({reasons}):"
            " lower n_val or n_train (0 = all), or give more"
        )
    return train, val, {reason: n for reason, n in removed.items() if n}
