"""Things put into a given order: scores, ceilings and unseen lengths."""

import ast
import re
import runpy
import shlex
from collections import Counter

import pytest

import tasks
from common import config
from common.batches import fingerprint
from common.errors import UserError
from common.tokenizer import get_tokenizer
from conftest import ROOT
from task_checks import BYTES, check_split, gold, readers, text_of, visible
from tasks import permute
from tasks._common import rng

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


def test_the_published_size_is_evaluated_at_the_published_lengths(monkeypatch):
    monkeypatch.chdir(ROOT)
    source = (ROOT / "configs" / "diffusion_permfill.py").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^ *(python .*)", ast.get_docstring(ast.parse(source)))
    _, script, *argv = shlex.split(commands[1])
    build_job = runpy.run_path(script)["build_job"]
    found = config.override(build_job.__globals__, [*argv, "--n_train=20", "--n_val=5"])
    lengths = []
    for options in ({}, *found["more_sets"].values()):
        job = build_job(get_tokenizer(found["tokenizer"]), 1234, options)
        assert {len(e.meta["keys"]) for e in job.train} == {24}
        lengths += {len(e.meta["keys"]) for e in job.val}
    assert lengths == [24, 28, 32, 36]
    assert (found["n_layer"], found["n_embd"]) == (12, 256)
