"""Tasks with blanks beyond test_tasks.py: answers follow from the text, computed ceilings are those of real readers."""

import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

import tasks
from common.batches import fingerprint
from common.errors import UserError
from common.tokenizer import get_tokenizer
from tasks import _infill, permute
from tasks._common import rng

BYTES = get_tokenizer("bytes")
KINDS = _infill.KINDS


def visible(e) -> str:
    return "".join("_" if i in e.blanks else chr(t) for i, t in enumerate(e.prompt))


def text_of(ids) -> str:
    return "".join(map(chr, ids))


def gold(rows):
    return [e.answer for e in rows]


def check_split(task, other):
    """Same rows when built again, different ones for another seed, nothing on both sides whatever the seed."""
    ids = [e.id for e in task.val]
    assert len(set(ids)) == len(ids)
    assert not {e.id for e in task.train} & set(ids)
    assert not {e.id for e in other.train} & set(ids)
    assert [e.prompt for e in task.train] != [e.prompt for e in other.train]
    for e in [*task.train, *task.val]:
        assert [i for i, t in enumerate(e.prompt) if t == BYTES.mask_id] == e.blanks
        assert len(e.answer) == len(e.blanks) <= task.max_new_tokens


# --- ceilings, by all outcomes of small rows
class Every:
    """Stands for a generator of random numbers; rewinds through all equally likely outcomes."""

    def __init__(self):
        self.path, self.at = [], 0

    def pick(self, n: int) -> int:
        if self.at == len(self.path):
            self.path.append([0, n])
        self.at += 1
        return self.path[self.at - 1][0]

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + (self.pick(high - low) if size is None else np.array([self.pick(high - low) for _ in range(size)]))

    def choice(self, n, size, replace):
        left = list(range(n))
        return np.array([left.pop(self.pick(len(left))) for _ in range(size)], dtype=int)

    def permutation(self, n):
        return self.choice(n, n, False)

    def next(self) -> float | None:
        """Chance of the outcome that was just used; ready for the next one, if there is one."""
        chance, self.at = math.prod(1 / n for _, n in self.path), 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        return chance


def readers(draw) -> tuple[float, float]:
    """Best expected accuracy per blank of a reader of all that stands up to the blank, and of one of all the text."""
    random, left, whole, blanks = Every(), defaultdict(Counter), defaultdict(Counter), 0.0
    while True:
        row = draw(random)
        chance = random.next()
        text = "".join("_" * len(part) if i % 2 else part for i, part in enumerate(row))
        at = [i for i, c in enumerate(text) if c == "_"]
        for i, c in zip(at, "".join(row[1::2]), strict=True):
            left[text[: i + 1]][c] += chance
            whole[text, i][c] += chance
            blanks += chance
        if not random.path:
            return tuple(sum(max(c.values()) for c in seen.values()) / blanks for seen in (left, whole))


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
    "add": (r"(\d+)\+(\d+)=(\d*)(_+)(\d*)", lambda a, b, x, y, z: str(int(a) + int(b)).zfill(9)[len(x) :][: len(y)]),
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
        ({"kind": "parity", "n_parts": 0}, "takes n_parts of 1 to 256, not 0"),
    ],
)
def test_infill_errors(options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("infill", BYTES, 0, 10, 10, **options)


# --- permute
VARIANTS = [
    {"kind": "kvsort", "n_min": 3, "n_max": 6, "n_test": 8},
    {"kind": "kvsort", "n_min": 5, "keys_only": False},
    {"kind": "permfill", "n_min": 4, "n_max": 9, "n_test": [9, 12, 36]},
    {"kind": "permfill", "n_min": 4, "n_max": 9, "n_test": 12, "anchors": 2},
    {"kind": "kvsort", "n_min": 6, "keys_only": False, "anchors": 3},
]


def solve_permute(text: str) -> str:
    m, order, given = re.fullmatch(r"M=(.*)\|R=O=(\w{36});(.*)", text).groups()
    assert len(set(order)) == 36
    pairs = dict(p.split(":") for p in given.split(";")) if ":" in given else dict.fromkeys(given, "")
    full = [k + (":" + pairs[k] if ":" in m else "") for k in sorted(pairs, key=order.index)]
    full = (";" if ":" in m else "").join(full)
    assert len(full) == len(m)
    assert all(a in (b, "_") for a, b in zip(m, full, strict=True))  # the anchors stand where they belong
    return "".join(b for a, b in zip(m, full, strict=True) if a == "_")


@pytest.mark.parametrize("options", VARIANTS)
def test_permute_rows(options):
    task, again, other = (tasks.build("permute", BYTES, seed, 60, 30, **options) for seed in (3, 3, 4))
    assert fingerprint([*task.train, *task.val]) == fingerprint([*again.train, *again.val])
    check_split(task, other)
    for e in [*task.train, *task.val]:
        assert solve_permute(visible(e)) == text_of(e.answer)
        assert sorted(e.answer[i] for i in e.meta["slots"]) == e.meta["choices"]
        assert len(set(e.meta["choices"])) == len(e.meta["slots"]) == len(e.meta["keys"]) - options.get("anchors", 0)
    low, high = options["n_min"], options.get("n_max", options["n_min"])
    assert {len(e.meta["keys"]) for e in task.train} == set(range(low, high + 1))
    wanted = options.get("n_test", high)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    assert Counter(len(e.meta["keys"]) for e in task.val) == dict.fromkeys(wanted, 30 // len(wanted))


@pytest.mark.parametrize("options", VARIANTS)
def test_permute_scores(options):
    task = tasks.build("permute", BYTES, 3, 1, 300, **options)
    perfect = task.score(task.val, gold(task.val))
    assert set(perfect.values()) == {1.0}
    assert {k for k in perfect if "=" in k} == (
        {"exact n=9", "exact n=12", "exact n=36"} if len(perfect) > 5 else set()
    )
    step = 1 if options.get("keys_only", True) else 2
    # keys put backwards (values stay): all valid, none in order
    back = [list(e.answer) for e in task.val]
    for got in back:
        got[::step] = got[::step][::-1]
    scores = task.score(task.val, back)
    assert scores["key_valid"] == 1.0
    assert scores["exact"] == scores["key_order"] == 0.0
    # keys in random order are what a level says
    for i, got in enumerate(back):
        got[::step] = rng("order", i).permutation(got[::step]).tolist()
        if step == 2:
            got[1::2] = [ord(permute.ITEMS[j]) for j in rng("values", i).integers(0, 36, len(got) // 2)]
    level = permute.levels_of(task.val, "accuracy")["keys in random order"]
    assert abs(task.score(task.val, back)["accuracy"] - level) < 4 * (level / sum(map(len, back))) ** 0.5
    # the same key twice is in no order; a short or foreign answer is wrong, not an error
    twice = task.score(task.val, [e.answer[:1] * len(e.answer) for e in task.val])
    assert twice["key_valid"] == twice["key_order"] == 0.0
    for bad in ([], [BYTES.mask_id] * 99):
        assert set(task.score(task.val, [bad] * 300).values()) == {0.0}


def test_permute_scores_by_hand():
    e = tasks.build("permute", BYTES, 3, 1, 1, n_min=3, keys_only=False).val[0]
    k, v, l, w, m, x = e.answer
    score = lambda ids: permute.score([e], [ids])
    assert score([k, v, l, w, m, 0])["pair_accuracy"] == 2 / 3
    assert score([k, v, l, w, m, 0])["accuracy"] == 5 / 6
    assert score([k, 0, l, 0, m, 0])["pair_accuracy"] == 0.0
    assert score([k, 0, l, 0, m, 0])["key_order"] == score([k, 0, l, 0, m, 0])["key_valid"] == 1.0
    other = next(key for key in e.meta["order"][::-1] if key not in (k, l, m))  # not given, but perhaps in order
    later = e.meta["order"].index(other) > e.meta["order"].index(l)
    assert score([k, v, l, w, other, x])["key_order"] == float(later)
    assert score([k, v, l, w, other, x])["key_valid"] == 0.0


@pytest.mark.parametrize(
    ("items", "n", "anchors", "keys_only"),
    [("abcd", 2, 0, True), ("abc", 3, 1, True), ("abc", 3, 2, True), ("abcd", 2, 1, True), ("abc", 2, 1, False)],
)
def test_permute_ceiling(monkeypatch, items, n, anchors, keys_only):
    monkeypatch.setattr(permute, "ITEMS", items)
    rows = []

    def draw(random):
        row, _, keys, places = permute.draw_row(random, "kvsort", n, anchors, keys_only)
        meta = {"keys": keys, "slots": places, "open": places}
        rows.append(tasks.Example("", [], [], [0] * (len(row) // 2), meta))
        return row

    causal, full = readers(draw)
    assert permute.levels_of(rows, "accuracy")["causal ceiling"] == pytest.approx(causal, abs=1e-9)
    assert full == pytest.approx(1.0)


def test_permute_levels_of_exact():
    rows = tasks.build("permute", BYTES, 0, 1, 5, kind="permfill", n_min=2).val
    some = {"chance": 36**-2, "keys in random order": 1 / 2, "causal ceiling": 1 / (36 * 35)}
    assert permute.levels_of(rows, "exact") == pytest.approx(some)
    pairs = tasks.build("permute", BYTES, 0, 1, 5, n_min=3, keys_only=False, anchors=1).val
    some = {"chance": 36**-4, "keys in random order": 36**-2 / 2, "causal ceiling": 36**-2 / (35 * 34)}
    assert permute.levels_of(pairs, "exact") == pytest.approx(some)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sort"}, "no kind 'sort'"),
        ({"metric": "key_valid"}, "exact or accuracy"),
        ({"kind": "permfill", "keys_only": False}, "has no values"),
        ({"n_min": 5, "n_max": 4}, "n_min <= n_max"),
        ({"n_test": 37}, "1 to 36 items"),
        ({"n_test": [5, 0]}, "1 to 36 items"),
        ({"n_min": 3, "anchors": 3}, "use 0 to 2"),
        ({"n_test": list(range(1, 12))}, "use 11 or more"),
    ],
)
def test_permute_errors(options, message):
    with pytest.raises(UserError, match=message):
        tasks.build("permute", BYTES, 0, 10, 10, **options)
    with pytest.raises(UserError, match="no single token for ':'"):
        tasks.build("permute", get_tokenizer(f"chars:{permute.ITEMS}MRO=|;_#"), 0, 10, 10)
    with pytest.raises(UserError, match="needs a mask token"):
        tasks.build("permute", get_tokenizer(f"chars:{permute.ITEMS}MRO=|;:#"), 0, 10, 10)


# --- text
def build_text(path, n_train=50, n_val=20, seed=0, tok=BYTES, **options):
    return tasks.build("text", tok, seed, n_train, n_val, data=str(path), **options)


@pytest.mark.parametrize("name", ["text/sherlock.txt", "text/wiki.valid.tokens"])
@pytest.mark.parametrize("mask", ["random", "prefix", "span"])
def test_text_rows(data, name, mask):
    path = data(name)
    task, again, other = (build_text(path, seed=seed, mask=mask, span=20, length=64) for seed in (3, 3, 4))
    assert fingerprint([*task.train, *task.val]) == fingerprint([*again.train, *again.val])
    assert {e.id for e in task.val} != {e.id for e in other.val}
    check_split(task, other)
    every = build_text(path, n_train=600, n_val=0, mask=mask, span=20, length=64)
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").encode()
    inside = {i for e in every.val for i in range(e.meta["start"], e.meta["start"] + 64)}
    for e in [*every.train, *every.val]:
        start = e.meta["start"]
        whole = list(e.prompt)
        for i, t in zip(e.blanks, e.answer, strict=True):
            whole[i] = t
        assert bytes(whole) == text[start : start + 64]
    assert not inside & {i for e in every.train for i in range(e.meta["start"], e.meta["start"] + 64)}
    assert 0.08 < len(every.val) * 64 / len(text) < 0.12
    fixed = {"prefix": list(range(32)), "span": list(range(22, 42))}.get(mask)
    assert all(e.blanks == fixed for e in every.train) if fixed else True
    if mask == "random":  # ratios are uniform: each tenth of them as often as the others
        shares = np.histogram([len(e.blanks) / 64 for e in every.train], 10, (0, 1))[0]
        assert min(len(e.blanks) for e in every.train) == 1
        assert (abs(shares - 60) < 4 * 54**0.5).all()


def test_text_levels_and_scores(data):
    task = build_text(data("text/sherlock.txt"), n_val=200)
    assert task.score(task.val, gold(task.val)) == {"accuracy": 1.0, "exact": 1.0}
    spaces = task.score(task.val, [[32] * len(e.blanks) for e in task.val])["accuracy"]
    assert task.levels == {"chance": 1 / 256, "majority": spaces}
    assert 0.15 < spaces < 0.2


def test_text_with_other_tokenizers(data, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{i * i % 997} " for i in range(3000)))
    chars = get_tokenizer("chars:0123456789 _#")
    e = build_text(path, tok=chars, length=32).val[0]
    assert [i for i, t in enumerate(e.prompt) if t == chars.mask_id] == e.blanks
    world = get_tokenizer("world", data("rwkv-vocab/rwkv_vocab_v20230424.txt"))
    task = build_text(data("text/sherlock.txt"), tok=world, mask="span", span=4, length=16)
    assert all(e.prompt.count(world.mask_id) == 4 for e in task.val)
    with pytest.raises(UserError, match=r"character .* is not in the alphabet"):
        build_text(data("text/sherlock.txt"), tok=chars)
    path.write_text("12_4 " * 3000)
    with pytest.raises(UserError, match="has the mask token"):
        build_text(path, tok=chars)


def test_text_that_repeats_itself(tmp_path):
    # five different windows stand everywhere, at places of blocks and at others
    (tmp_path / "t.txt").write_text("1234 " * 3000)
    task = build_text(tmp_path / "t.txt", tok=get_tokenizer("chars:0123456789 _#"), length=32, n_val=1)
    assert 1 < len({e.id for e in task.train} | {task.val[0].id}) <= 5
    assert task.val[0].id not in {e.id for e in task.train}
    (tmp_path / "t.txt").write_text("1" * 3000)
    with pytest.raises(UserError, match="or give more text"):
        build_text(tmp_path / "t.txt", n_val=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "suffix"}, "use one of random, prefix, span"),
        ({"length": 1}, "length of 2 or more"),
        ({"mask": "span", "span": 65, "length": 64}, "span of 1 to length"),
        ({"n_train": 0}, "use 1 or more"),
        ({"n_val": 99}, r"gave \d+ validation blocks of length=128 \(n_val=99\)"),
        ({"length": 90_000}, "gave 0 validation blocks"),
        ({"tok": get_tokenizer("chars:ab#")}, "needs a mask token"),
    ],
)
def test_text_errors(tmp_path, options, message):
    (tmp_path / "t.txt").write_text("".join(f"{i * i % 997} " for i in range(10_000)))
    with pytest.raises(UserError, match=message):
        build_text(tmp_path / "t.txt", **options)
    with pytest.raises(UserError, match="needs a file"):
        build_text("")
