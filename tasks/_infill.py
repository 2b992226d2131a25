"""In-place repair: what the kinds of tasks/infill.py look like, and the best score of a reader that can't look ahead.

A row is a tuple of strings: shown, blank, shown, blank, ..., shown. Its numbers are independent and uniform, so that a
ceiling is either the mean of certain and blind blanks, or the expected share of the most frequent of some digits.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from tasks import Example
from tasks._common import content_id

Row = tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """draw: (random, n, m) -> a row of numbers with n digits; m is the kind's other size, 0 if it has none.

    ceiling: (n, m) -> the best expected accuracy per blank of a reader that has seen nothing to the right of that
        blank and to whom earlier blanks read as masks.
    n, m: the published sizes. least, most, most_m: bounds of n, and the upper one of m for a given n.
    chance: expected accuracy of random digits. bag: whether what belongs into the blanks stands, in another order, in
        the text. best: n -> the best of a reader of all the text where that is below 1 (None: not computed).
    """

    draw: Callable[..., Row]
    alphabet: str
    ceiling: Callable[[int, int], float]
    n: int = 8
    m: int = 0
    least: int = 1
    most: int = 256
    most_m: Callable[[int], int] = lambda n: 256
    chance: float = 0.1
    bag: bool = False
    best: Callable[[int], float | None] = lambda n: None


def example(ids: dict[str, int], mask: int, row: Row, bag: bool = False, **meta) -> Example:
    """The row as an example. `bag` puts into meta what decoding by assignment needs: the ids in `choices` are to be
    put one each into the blanks number `slots` (indices into Example.blanks)."""
    prompt, blanks, answer = [], [], []
    for i, part in enumerate(row):
        found = [ids[c] for c in part]
        if i % 2:
            blanks += range(len(prompt), len(prompt) + len(part))
            answer += found
        prompt += [mask] * len(part) if i % 2 else found
    if bag:
        meta |= {"choices": sorted(answer), "slots": list(range(len(answer)))}
    return Example(content_id("".join(row)), prompt, answer, blanks, meta)


# --- ceilings
def expected_most(n: int, values: int = 10) -> float:
    """Expected count of the most frequent of n independent uniform values.

    Counts of independent Poisson variables, given that they sum to n, are those of n draws; so the chance that none
    exceeds m is a convolution of distributions that are cut at m.
    """

    def poisson(mean: float, k: int) -> float:
        return math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))

    one, below = [poisson(n / values, k) for k in range(n + 1)], 0.0
    for m in range(n):
        total = np.ones(1)
        for _ in range(values):
            total = np.convolve(total, one[: m + 1])[: n + 1]
        below += total[n] if len(total) > n else 0.0
    return float(n - below / poisson(n, n))


def certain(n: int, m: int) -> float:
    """All that a blank needs stands to the left of it."""
    return 1.0


def blind(n: int, m: int) -> float:
    return 0.1


def one_of(n: int) -> float:
    """It is one of n independent digits that were read; which one stands to the right."""
    return expected_most(n) / n


def mirror(n: int, m: int) -> float:
    """It is one of two digits that were read; they are the same one in the middle of an odd number of digits."""
    return (n % 2 + (n - n % 2) * one_of(2)) / n


def best_of_question(n: int) -> float | None:
    """Of x and y, given x + y: x is uniform in an interval, and the best guess for each of its digits the commonest."""
    if n > 3:
        return None
    right = 0
    for total in range(2 * 10**n - 1):
        numbers = [f"{x:0{n}}" for x in range(max(0, total - 10**n + 1), min(total, 10**n - 1) + 1)]
        right += sum(max(Counter(column).values()) for column in zip(*numbers, strict=True))
    return right / (n * 100**n)


def best_of_either(n: int) -> float | None:
    """2n blanks of the question in half of the rows, n + 1 certain ones of the answer in the others."""
    best = best_of_question(n)
    return best and (2 * n * best + n + 1) / (3 * n + 1)


# --- rows
def digits(random, n: int, base: int = 10) -> str:
    return "".join(map(str, random.integers(0, base, n)))


def two(random, n: int) -> tuple[str, str]:
    both = digits(random, 2 * n)
    return both[:n], both[n:]


def rightcopy(random, n: int, m: int) -> Row:
    l, r = two(random, n)
    return f"L={l}|M=", r, f"|R={r}"


def rightrev(random, n: int, m: int) -> Row:
    l, r = two(random, n)
    return f"L={l}|M=", r[::-1], f"|R={r}"


def struct(random, n: int, m: int) -> Row:
    a, c = two(random, n)
    return f'{{"a":{a},"b":', a + c, f',"c":{c}}}'


def constr(random, n: int, m: int) -> Row:
    p, r = two(random, n)
    return f"P={p}|M=", (p[-1] + r[:2] * n)[:n], f"|R={r[:2]}"


def add(random, n: int, m: int, ease: int = 0) -> Row:
    """ease: at a share of the places, the largest of so many uniform draws, one of the two digits is 0."""
    a, b = digits(random, n), digits(random, n)
    if ease:
        easy, of_a = random.random(n) < random.random(ease).max(), random.random(n) < 0.5
        a, b = ("".join(np.where(easy & zero, "0", list(x))) for x, zero in ((a, of_a), (b, ~of_a)))
    c, start = f"{int(a) + int(b):0{n + 1}}", (n + 1 - m) // 2
    return f"{a}+{b}={c[:start]}", c[start : start + m], c[start + m :]


def inter(random, n: int, m: int) -> Row:
    a, b = digits(random, n), digits(random, n)
    return f"A={a}|B={b}|M=", "".join(x + y for x, y in zip(a, b, strict=True)), ""


def multi(random, n: int, m: int) -> Row:
    a, c = digits(random, n), digits(random, n)
    return f"A={a}|C={c}|B=", a + c, f"|D={a[::-1]}{c}"


def parity(random, n: int, m: int) -> Row:
    row = ["X="]
    blocks = [digits(random, n, 2) for _ in range(m)]
    for block in blocks:
        i = int(random.integers(n))
        row[-1] += block[:i]
        row += [block[i], block[i + 1 :]]
    row[-1] += "|P=" + "".join(str(block.count("1") % 2) for block in blocks)
    return tuple(row)


def index(random, n: int, m: int) -> Row:
    a, i, width = digits(random, n), int(random.integers(n - m + 1)), len(str(n - 1))
    return f"A={a}|Y=", a[i : i + m], f"|I={i:0{width}},{i + m - 1:0{width}}"


def rule(random, n: int, m: int) -> Row:
    a, r = digits(random, n), "CV"[int(random.integers(2))]
    return f"A={a}|M=", a if r == "C" else a[::-1], f"|R={r}"


def cipher(random, n: int, m: int) -> Row:
    a, key = digits(random, n), "".join(map(str, random.permutation(10)))
    return f"A={a}|M=", "".join(key[int(c)] for c in a), f"|K={key}"


def shift(random, n: int, m: int) -> Row:
    a, k = digits(random, n), int(random.integers(10))
    return f"A={a}|M=", "".join(str((int(c) + k) % 10) for c in a), f"|K={k}"


def poscopy(random, n: int, m: int) -> Row:
    a, i = digits(random, n), int(random.integers(n))
    return f"A={a}|M=", a[i] * m, f"|I={i:0{len(str(n - 1))}}"


def retr(random, n: int, m: int) -> Row:
    pairs, i = [(k, digits(random, n)) for k in ascii_lowercase[:m]], int(random.integers(m))
    return ";".join(f"{k}={v}" for k, v in pairs) + "|ANS=", pairs[i][1], f"|Q={pairs[i][0]}"


def perm(random, n: int, m: int) -> Row:
    order, a = random.permutation(n), digits(random, n)
    return f"P={''.join(map(str, order))}|Y={''.join(a[i] for i in order)}|A=", a, ""


def question_and_answer(random, n: int) -> tuple[str, str, str]:
    x, y = digits(random, n), digits(random, n)
    return x, y, f"{int(x) + int(y):0{n + 1}}"


def qa(random, n: int, m: int) -> Row:
    x, y, total = question_and_answer(random, n)
    return f"Q:{x}+{y}|A:", total, ""


def aq(random, n: int, m: int) -> Row:
    x, y, total = question_and_answer(random, n)
    return "Q:", x, "+", y, f"|A:{total}"


def qa_or_aq(random, n: int, m: int) -> Row:
    return (qa, aq)[int(random.integers(2))](random, n, m)


D = "0123456789"
# fmt: off
KINDS = {
    "rightcopy": Kind(rightcopy, D + "LMR=|", blind, most=10**6),
    "rightrev": Kind(rightrev, D + "LMR=|", blind, most=10**6),
    "struct":   Kind(struct,   D + '{"a:,bc}', lambda n, m: 0.55, most=10**6),  # half is a copy of a
    "constr":   Kind(constr,   D + "PMR=|",   lambda n, m: 1 / n + (1 - 1 / n) / 10, least=2, most=10**6),
    "index":    Kind(index,    D + "AYI=|,",  lambda n, m: one_of(n - m + 1), 16, 4, most_m=lambda n: n),
    "poscopy":  Kind(poscopy,  D + "AMI=|",   lambda n, m: one_of(n), m=3),
    "retr":     Kind(retr,     D + "=;|ANSQ", lambda n, m: one_of(m), 4, 4, most_m=lambda n: 26),
    "rule":     Kind(rule,     D + "AMRCV=|", mirror),
    "cipher":   Kind(cipher,   D + "AMK=|",   blind, 16),
    "shift":    Kind(shift,    D + "AMK=|",   blind, 16),
    "parity":   Kind(parity,   "01XP=|",      lambda n, m: 0.5, m=4, chance=0.5),
    "add":      Kind(add,      D + "+=",      certain, m=4, most_m=lambda n: n + 1),
    "inter":    Kind(inter,    D + "ABM=|",   certain, bag=True),
    "multi":    Kind(multi,    D + "ABCD=|",  certain),
    "perm":     Kind(perm,     D + "PYA=|",   certain, most=10, bag=True),
    "qa":       Kind(qa,       D + "QA:+|",   certain, 2),
    "aq":       Kind(aq,       D + "QA:+|",   blind, 2, best=best_of_question),
    "qa_or_aq": Kind(qa_or_aq, D + "QA:+|",   lambda n, m: (n + 1 + 0.1 * 2 * n) / (3 * n + 1), 2, best=best_of_either),
}
# fmt: on
