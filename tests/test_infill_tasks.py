"""In-place repair: answers follow from the text, computed ceilings are those of real readers."""

import re
from collections import Counter, defaultdict

import pytest

import tasks
from common.batches import fingerprint
from common.errors import UserError
from common.tokenizer import get_tokenizer
from task_checks import BYTES, check_split, gold, readers, text_of, visible
from tasks import _infill
from tasks._common import rng

KINDS = _infill.KINDS

SMALL = [("add", 1, 1), ("add", 2, 3), ("inter", 1, 0), ("multi", 2, 0), ("parity", 3, 2), ("index", 4, 3)]
SMALL += [("index", 3, 3), ("index", 3, 1), ("rule", 2, 0), ("rule", 3, 0), ("shift", 2, 0), ("poscopy", 3, 2)]
SMALL += [("retr", 1, 3), ("retr", 2, 2), ("perm", 3, 0), ("qa", 1, 0), ("aq", 1, 0), ("aq", 2, 0)]
SMALL += [("qa_or_aq", 1, 0), ("qa_or_aq", 2, 0), ("rightcopy", 2, 0), ("rightrev", 2, 0), ("struct", 1, 0)]
SMALL += [("struct", 2, 0), ("constr", 2, 0)]


@pytest.mark.parametrize(("kind", "n", "m"), SMALL)
def test_levels_are_those_of_perfect_readers(kind, n, m):
    what = KINDS[kind]
    causal, full = readers(lambda random: what.draw(random, n, m))
    assert what.ceiling(n, m) == pytest.approx(causal, abs=1e-9)
    assert (what.best(n) or 1.0) == pytest.approx(full, abs=1e-9)


def test_cipher_is_blind_from_the_left():
    # 10! keys are too many for all outcomes: a guess for each letter is learnt from half of the rows, scored on others
    rows = [KINDS["cipher"].draw(rng("cipher", i), 2, 0) for i in range(8000)]
    seen = defaultdict(Counter)
    for left, middle, _ in rows[:4000]:
        for i in (0, 1):
            seen[left[2 + i], i][middle[i]] += 1
    hits = sum(
        middle[i] == seen[left[2 + i], i].most_common(1)[0][0] for left, middle, _ in rows[4000:] for i in (0, 1)
    )
    assert abs(hits / 8000 - KINDS["cipher"].ceiling(2, 0)) < 4 * (0.09 / 8000) ** 0.5


@pytest.mark.parametrize(("n", "values"), [(1, 10), (3, 10), (4, 3), (7, 2)])
def test_expected_most(n, values):
    counts = [max(Counter(i // values**j % values for j in range(n)).values()) for i in range(values**n)]
    assert _infill.expected_most(n, values) == pytest.approx(sum(counts) / len(counts))


def test_every_kind_has_been_compared():
    assert {kind for kind, _, _ in SMALL} | {"cipher"} == set(KINDS)


# --- infill
def solve_parity(bits, parities):
    blocks = re.findall("." * (len(bits) // len(parities)), bits)
    return "".join(str((block.count("1") + int(p)) % 2) for block, p in zip(blocks, parities, strict=True))


SOLVERS = {  # what the rest of the text says about its blanks
    "rightcopy": (r"L=\d+\|M=_+\|R=(\d+)", lambda r: r),
    "rightrev": (r"L=\d+\|M=_+\|R=(\d+)", lambda r: r[::-1]),
    "struct": (r'{"a":(\d+),"b":_+,"c":(\d+)}', lambda a, c: a + c),
    "constr": (r"P=(\d+)\|M=_+\|R=(\d)(\d)", lambda p, x, y: (p[-1] + 8 * (x + y))[: len(p)]),
    "add": (
        r"(\d+)\+(\d+)=(\d*)(_+)(\d*)",
        lambda a, b, x, y, z: f"{int(a) + int(b):0{len(a) + 1}}"[len(x) :][: len(y)],
    ),
    "inter": (r"A=(\d+)\|B=(\d+)\|M=_+", lambda a, b: "".join(map("".join, zip(a, b, strict=True)))),
    "multi": (r"A=\d+\|C=(\d+)\|B=_+\|D=(\d+)", lambda c, d: d[: -len(c)][::-1] + c),
    "parity": (r"X=([01_]+)\|P=([01]+)", solve_parity),
    "index": (r"A=(\d+)\|Y=_+\|I=(\d+),(\d+)", lambda a, i, j: a[int(i) : int(j) + 1]),
    "rule": (r"A=(\d+)\|M=_+\|R=([CV])", lambda a, r: {"C": a, "V": a[::-1]}[r]),
    "cipher": (r"A=(\d+)\|M=_+\|K=(\d{10})", lambda a, k: a.translate(str.maketrans("0123456789", k))),
    "shift": (r"A=(\d+)\|M=_+\|K=(\d)", lambda a, k: "".join(str(int(c) + int(k))[-1] for c in a)),
    "poscopy": (r"A=(\d+)\|M=(_+)\|I=(\d+)", lambda a, m, i: a[int(i)] * len(m)),
    "retr": (r"(.+)\|ANS=_+\|Q=(.)", lambda pairs, q: re.search(rf"{q}=(\d+)", pairs)[1]),
    "perm": (r"P=(\d+)\|Y=(\d+)\|A=_+", lambda p, y: "".join(c for _, c in sorted(zip(p, y, strict=True)))),
    "qa": (r"Q:(\d+)\+(\d+)\|A:_+", lambda x, y: str(int(x) + int(y)).zfill(len(x) + 1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_infill_rows(kind):
    task, again, other = (tasks.build("infill", BYTES, seed, 60, 40, kind=kind, n_digits=-1) for seed in (3, 3, 4))
    assert fingerprint([*task.train, *task.val]) == fingerprint([*again.train, *again.val])
    check_split(task, other)
    n = KINDS[kind].n
    assert task.levels["causal ceiling"] == KINDS[kind].ceiling(n, KINDS[kind].m)
    scores = task.score(task.val, gold(task.val))
    assert scores == {"accuracy": 1.0, "exact": 1.0} | ({"valid": 1.0} if kind in ("qa", "aq", "qa_or_aq") else {})
    assert task.score(task.val, [e.answer[:-1] for e in task.val])["exact"] == 0.0
    chars = get_tokenizer(f"chars:{KINDS[kind].alphabet}{'abcd' if kind == 'retr' else ''}_#")
    small = tasks.build("infill", chars, 3, 60, 40, kind=kind, n_digits=-1)
    assert [chars.decode(e.prompt) for e in small.val] == [visible(e) for e in task.val]


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("n_digits", [-1, 8])
def test_infill_is_solvable_from_its_text(kind, n_digits):
    task = tasks.build("infill", BYTES, 5, 60, 40, kind=kind, n_digits=n_digits)
    pattern, solve = SOLVERS[kind]
    for e in [*task.train, *task.val]:
        found = re.fullmatch(pattern, visible(e))
        assert solve(*found.groups()) == text_of(e.answer)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_other_rows_are_guesses(kind):
    task = tasks.build("infill", BYTES, 0, 1, 500, kind=kind, n_digits=-1)
    if kind == "qa_or_aq":  # rows with equally many blanks
        task.val.sort(key=lambda e: len(e.blanks))
    # sums are not uniform, which is no task's fault; blanks of a row may be one digit, so a row counts once
    rolled = task.score(task.val, gold(task.val[1:] + task.val[:1]))["accuracy"]
    slack = 0.15 if kind.startswith("qa") else 4 * (task.levels["chance"] * (1 - task.levels["chance"]) / 500) ** 0.5
    assert abs(rolled - task.levels["chance"]) < slack


def test_sums_with_many_right_answers():
    task = tasks.build("infill", BYTES, 0, 10, 60, kind="aq", n_digits=2)
    swapped = [[*e.answer[2:], *e.answer[:2]] for e in task.val]  # y + x
    scores = task.score(task.val, swapped)
    assert scores["valid"] == 1.0
    assert scores["exact"] == sum(e.answer[:2] == e.answer[2:] for e in task.val) / 60 < 0.2
    wrong = task.score(task.val, [[*e.answer[:3], 48 + (e.answer[3] - 47) % 10] for e in task.val])
    assert (wrong["valid"], wrong["accuracy"]) == (0.0, 0.75)
    assert task.score(task.val, [[200] * 4] * 60)["valid"] == task.score(task.val, [[]] * 60)["valid"] == 0.0
    either = tasks.build("infill", BYTES, 0, 10, 60, kind="qa_or_aq", n_digits=2)
    assert {visible(e)[2] == "_" for e in either.val} == {True, False}


@pytest.mark.parametrize("kind", ["inter", "perm"])
def test_what_assignment_needs(kind):
    task = tasks.build("infill", BYTES, 0, 10, 20, kind=kind)
    for e in task.val:
        assert sorted(e.answer[i] for i in e.meta["slots"]) == e.meta["choices"]
        # the choices can be read off the text: what stands in A and B, or in Y
        shown = re.search(r"Y=(\d+)", visible(e)) if kind == "perm" else re.search(r"A=(\d+\|B=\d+)", visible(e))
        assert sorted(ord(c) for c in shown[1] if c.isdigit()) == e.meta["choices"]


def test_easy_places_of_training_rows():
    options = dict(kind="add", n_digits=8, n_blanks=9)
    plain, once, often = (tasks.build("infill", BYTES, 5, 400, 40, **options, ease=ease) for ease in (0, 1, 4))
    pattern, solve = SOLVERS["add"]

    def easy(task):  # for each row, the places where a number has a 0
        rows = []
        for e in task.train:
            assert solve(*re.fullmatch(pattern, visible(e)).groups()) == text_of(e.answer)
            a, b = visible(e).split("=")[0].split("+")
            assert len(a) == len(b) == 8
            rows.append(sum("0" in both for both in zip(a, b, strict=True)))
        return rows

    assert sum(easy(plain)) / 3200 == pytest.approx(0.19, abs=0.03)
    assert sum(easy(once)) / 3200 == pytest.approx(1 - 0.81 / 2, abs=0.04)  # the share is 1/2 in the mean
    assert sum(easy(often)) / 3200 == pytest.approx(1 - 0.81 / 5, abs=0.04)  # 4/5
    assert {0, 8} <= set(easy(once)), "each row has its own share"
    assert fingerprint(often.val) == fingerprint(plain.val), "those that are evaluated are random"
    assert not {e.id for e in often.train} & {e.id for e in often.val}


def test_recorded_rows_stay():
    tok = get_tokenizer("chars:0123456789LMR=|_#")
    for options in ({"n_digits": 8}, {}, {"n_digits": -1, "n_blanks": 2}):
        val = tasks.build("infill", tok, 1234, 256, 256, kind="rightcopy", **options).val
        assert fingerprint(val).startswith("fd6f042a5efd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sort"}, "no kind 'sort': choose one of rightcopy, .*, index, .*, qa_or_aq"),
        ({"kind": "index", "n_digits": 0}, "nothing to fill in"),
        ({"kind": "index", "n_digits": 3}, "n_digits=3 takes n_blanks of 1 to 3, not 4"),
        ({"kind": "add", "n_blanks": 0}, "takes n_blanks of 1 to 9, not 0"),
        ({"kind": "perm", "n_digits": 11}, "takes n_digits of 1 to 10, not 11"),
        ({"kind": "retr", "n_parts": 27}, "takes n_parts of 1 to 26, not 27"),
        ({"kind": "add", "ease": -1}, "ease=-1: use 0 for random digits, or 1 or more"),
        ({"kind": "inter", "ease": 1}, "kind=inter takes no ease"),
        ({"kind": "parity", "n_parts": 0}, "takes n_parts of 1 to 256, not 0"),
    ],
)
def test_infill_errors(options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("infill", BYTES, 0, 10, 10, **options)
