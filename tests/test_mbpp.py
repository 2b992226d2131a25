"""MBPP: prompts, splits, pass@k, scores by executing; nothing is executed where nothing would contain it."""

import fractions
import itertools
import json
import math
import re
import sys
import time

import pytest

import tasks
from common import sandbox
from common.errors import UserError
from common.sandbox import Program
from common.tokenizer import get_tokenizer
from tasks import mbpp

BYTES = get_tokenizer("bytes")
FILE = "mbpp/mbpp.jsonl"
contained = pytest.mark.skipif(bool(sandbox.missing()), reason=f"no containment here: {sandbox.missing()}")


def contents(rows):
    return [(e.id, e.prompt, e.answer) for e in rows]


def gold(rows):
    return [e.answer for e in rows]


def build(path, n_train=0, n_val=0, tok=BYTES, seed=0, **options):
    return tasks.build("mbpp", tok, seed, n_train, n_val, **{"data": str(path), "execute": False} | options)


def problems(ids, **fields):
    """Small problems of the data's form, each with a text, code and tests of its own."""
    return [
        {
            "task_id": i,
            "text": f"Write a function to add {i} to a number.",
            "code": f"def add_{i}(x):\r\n    return x + {i} \r\n",
            "test_setup_code": "",
            "test_list": [f"assert add_{i}({j}) == {i + j}" for j in range(3)],
            **fields,
        }
        for i in ids
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- pass@k
def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert mbpp.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_pass_at_k_of_many():
    for n, c, k in ((200, 3, 100), (100_000, 7, 1000), (10**6, 1, 10)):
        exact = 1 - fractions.Fraction(math.comb(n - c, k), math.comb(n, k)) if n < 10**6 else fractions.Fraction(k, n)
        assert mbpp.pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-9)
    for n, c, k in ((5, 6, 1), (5, 1, 6), (5, 1, 0), (5, -1, 1)):
        with pytest.raises(UserError, match="not defined"):
            mbpp.pass_at_k(n, c, k)


# --- prompts
def read_prompt(prompt: str) -> tuple[str, list[str], list[str], str]:
    """-> text, tests, notes, order; what doesn't have the form is an error."""
    problem = r"Problem:\n(?P<text>[^\n]+)\n\nTests:\n(?P<tests>(?:assert [^\n]+\n)+)"
    notes = r"Notes:(?P<notes>(?:\n- [^\n]+(?:\nassert [^\n]+)+)*)\n"
    for order, form in (("question_first", f"{problem}\n{notes}"), ("notes_first", f"{notes}\n{problem}")):
        if m := re.fullmatch(rf"{form}\nPython solution:", prompt):
            return m["text"], m["tests"].splitlines(), m["notes"].split("\n- ")[1:], order
    raise AssertionError(f"not a prompt: {prompt[:300]}")


@pytest.mark.parametrize("order", ["question_first", "notes_first"])
@pytest.mark.parametrize("val_split", ["validation", "test"])
def test_real_prompts(data, order, val_split):
    path = data(FILE)
    rows = {row["task_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    for row in rows.values():
        row["test_list"] = [test.strip() for test in row["test_list"]]
    task = build(path, order=order, val_split=val_split, max_prompt_tokens=6000)
    side = {"validation": range(511, 601), "test": range(11, 511)}[val_split]
    assert sorted(e.meta["task_id"] for e in task.val) == list(side)
    assert {e.meta["task_id"] for e in task.train} <= set(range(601, 975))
    note_of = {"\n".join([row["text"], *row["test_list"]]): i for i, row in rows.items()}
    shortest = min(len(note) for note in note_of)
    examples = [(e, side) for e in task.val[::7]] + [(task.train[i], range(601, 975)) for i in range(0, 360, 9)]
    for e, own_side in examples:
        text, tests, notes, got = read_prompt(BYTES.decode(e.prompt))
        row = rows[e.meta["task_id"]]
        assert (text, tests, got) == (row["text"], row["test_list"], order)
        assert BYTES.decode(e.answer) == "\n" + e.meta["code"]
        assert {note_of[note] for note in notes} <= set(own_side) - {row["task_id"]}
        assert len(set(notes)) == len(notes) > 5
        assert not {line for note in notes for line in note.split("\n")[1:]} & set(tests)
        assert 6000 - shortest - 200 < len(e.prompt) <= 6000
        assert "def " not in "\n".join([*tests, *notes])


@pytest.mark.parametrize("val_split", ["validation", "test"])
def test_splits_share_no_content(data, val_split):
    task = build(data(FILE), val_split=val_split, notes="none", max_prompt_tokens=20_000)
    assert set(task.removed) == {"that validation shares"}
    assert len(task.train) + task.removed["that validation shares"] == 374
    parts_of = (prompt_text, lambda e: e.meta["code"], *(lambda e, i=i: e.meta["test_list"][i] for i in range(3)))
    for one, other in itertools.product(parts_of, repeat=2):
        assert not {squeeze(one(e)) for e in task.train} & {squeeze(other(e)) for e in task.val}
    assert not {e.id for e in task.train} & {e.id for e in task.val}


def squeeze(text):
    return "".join(text.lower().split())


def prompt_text(e):
    return BYTES.decode(e.prompt).split("\n")[1]


def test_the_seed_sets_order_and_notes(tmp_path):
    path = write(tmp_path / "m.jsonl", problems(range(1, 975)))
    one, again, other = (build(path, 50, 20, seed=seed) for seed in (0, 0, 1))
    assert contents(one.train) == contents(again.train)
    assert contents(one.val) == contents(again.val)
    assert contents([one.train[-1]]) == contents([one.train[49]])
    assert contents(one.val) != contents(other.val)
    first = {e.id: e.prompt for e in one.val}
    both = [e for e in other.val if e.id in first]
    assert both  # the same problem with other notes
    assert all(e.prompt != first[e.id] for e in both)


def test_prompts_of_a_small_budget(tmp_path):
    path = write(tmp_path / "m.jsonl", problems(range(500, 700)))
    bare = build(path, notes="none").val[0]
    text, tests = prompt_text(bare), "\n".join(bare.meta["test_list"])
    assert BYTES.decode(bare.prompt) == f"Problem:\n{text}\n\nTests:\n{tests}\n\nPython solution:"
    (e,) = (e for e in build(path, max_prompt_tokens=len(bare.prompt) + 60).val if e.id == bare.id)
    assert read_prompt(BYTES.decode(e.prompt))[2] == []  # no note is cut to fit
    (e,) = (e for e in build(path, max_prompt_tokens=len(bare.prompt) + 450).val if e.id == bare.id)
    assert len(read_prompt(BYTES.decode(e.prompt))[2]) == 3
    with pytest.raises(UserError, match=r"mbpp has 0 problems .* \(189 with a problem over max_prompt_tokens=100\)"):
        build(path, max_prompt_tokens=100)


def test_errors(tmp_path):
    path = write(tmp_path / "m.jsonl", problems(range(500, 701)))
    for options, message in (
        ({"n_val": 91}, r"90 of validation in .* \(none was left out\), n_train=0 and n_val=91"),
        ({"n_train": 101}, "100 problems to train on"),
        ({"max_answer_tokens": 10}, "190 with code over max_answer_tokens=10"),
        ({"order": "random"}, "use one of question_first, notes_first"),
        ({"val_split": "train"}, "use one of validation, test"),
        ({"notes": "some"}, "use one of fill, none"),
        ({"data": str(tmp_path / "absent.jsonl")}, "can't be read"),
    ):
        with pytest.raises(UserError, match=message):
            build(path, **options)
    for broken, message in (
        ({"task_id": "7"}, "m2.jsonl:3 has no 'task_id' .int"),
        ({"text": ""}, "m2.jsonl:3 has no 'text'"),
        ({"code": None}, "m2.jsonl:3 has no 'code'"),
        ({"test_list": []}, "m2.jsonl:3 has no 'test_list'"),
        ({"test_list": ["assert f(1) == 2", "f(1)"]}, "m2.jsonl:3: the test 'f.1.' is not one assert"),
    ):
        rows = problems(range(500, 700))
        rows[2] |= broken
        with pytest.raises(UserError, match=message):
            build(write(tmp_path / "m2.jsonl", rows))


def test_shared_content_leaves_training(tmp_path):
    rows = problems(range(511, 701))
    by_id = {row["task_id"]: row for row in rows}
    by_id[650]["text"] = by_id[520]["text"].upper()
    by_id[660]["code"] = by_id[530]["code"].replace("\r\n", "\n")
    by_id[670]["test_list"][1] = by_id[540]["test_list"][2].replace(" ", "  ")
    task = build(write(tmp_path / "m.jsonl", rows))
    assert {e.meta["task_id"] for e in task.train} == set(range(601, 701)) - {650, 660, 670}
    assert len(task.val) == 90


def test_clean():
    assert mbpp.clean("def f(): \r\n\tx = 1 \r\n\r\n\treturn x\r\r\n\r\n") == "def f():\n\tx = 1\n\n\treturn x"
    assert mbpp.clean("  return 1\r") == "  return 1"  # a lone CR; a first indent stays


# --- refusal
@pytest.fixture
def fresh():
    sandbox.missing.cache_clear()
    yield
    sandbox.missing.cache_clear()


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ("sys", "platform", "darwin", "contained on Linux only"),
        ("platform", "machine", lambda: "riscv64", "for x86_64 and aarch64, and this is riscv64"),
        ("landlock", "landlock_version", lambda: 0, "Landlock, which came with Linux 5.13, is missing"),
        ("sandbox", "execute", lambda *_: sandbox.Verdict("killed", False, (False,), "no seccomp"), "no seccomp"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the first refusal is the only one")
def test_without_containment_nothing_is_run(fresh, tmp_path, monkeypatch, where, name, value, message):
    from common import contained

    place = {"sys": sandbox.sys, "platform": sandbox.platform, "landlock": contained, "sandbox": sandbox}[where]
    monkeypatch.setattr(place, name, value)
    monkeypatch.setattr(sandbox, "ThreadPoolExecutor", None)  # it must not come to this
    path = write(tmp_path / "m.jsonl", problems(range(511, 701)))
    with pytest.raises(UserError, match=message):
        sandbox.run([Program("x = 1")])
    with pytest.raises(UserError, match=rf"{message}.*execute=False"):
        build(path, execute=True)
    task = build(path)
    assert task.metric == "exact"
    assert task.score(task.val, gold(task.val)) == {"exact": 1.0}
    assert task.score(task.val, gold(task.val[1:] + task.val[:1])) == {"exact": 0.0}


@contained
def test_a_hole_ends_the_run(monkeypatch):
    sandbox.missing()
    monkeypatch.setattr(sandbox, "execute", lambda *_: sandbox.Verdict("uncontained", False, (), "fork"))
    with pytest.raises(UserError, match="no longer contained here, they could fork"):
        sandbox.run([Program("x = 1")])


# --- scores
@contained
def test_scores_by_hand(tmp_path):
    task = build(write(tmp_path / "m.jsonl", problems(range(511, 701))), n_val=4, execute=True)
    assert task.metric == "pass@1"
    assert task.levels == {"chance": 0.0}
    assert task.score(task.val, gold(task.val)) == {"pass@1": 1.0, "exec_ok": 1.0, "tests_passed": 1.0, "exact": 1.0}
    right, n = BYTES.decode(task.val[0].answer), task.val[1].meta["task_id"]
    partly = f"\ndef add_{n}(x):\n    return {n} if x == 0 else {n + 2}"  # two of its three tests
    codes = [right.replace("    ", "\t") + " # other", partly, "\nimport antigravity_is_not_here", ""]
    scores = task.score(task.val, [BYTES.encode(code) for code in codes])
    assert scores == pytest.approx({"pass@1": 1 / 4, "exec_ok": 3 / 4, "tests_passed": 5 / 12, "exact": 0.0})


@contained
def test_gold_programs_of_every_tenth_problem(data):
    task = build(data(FILE), execute=True, val_split="test")
    rows = [*task.val[::10], *(task.train[i] for i in range(0, 360, 8))]
    assert len(rows) == 95
    found = [read_prompt(BYTES.decode(e.prompt))[1] for e in rows]  # the tests as the model sees them
    programs = [
        Program(BYTES.decode(e.answer), e.meta["setup"], tuple(tests)) for e, tests in zip(rows, found, strict=True)
    ]
    verdicts = sandbox.run(programs)
    assert [e.meta["task_id"] for e, v in zip(rows, verdicts, strict=True) if not v.solved] == []
    scores = task.score(rows[:30], gold(rows[1:31]))  # another problem's program defines another function
    assert (scores["pass@1"], scores["exec_ok"], scores["exact"]) == (0.0, 1.0, 0.0)


@contained
@pytest.mark.slow
def test_all_gold_programs_and_throughput(data):
    rows = mbpp.read(str(data(FILE)))
    programs = [Program(row["code"], row["setup"], tuple(row["test_list"])) for row in rows.values()]
    start = time.perf_counter()
    verdicts = sandbox.run(programs)
    seconds = time.perf_counter() - start
    print(f"{len(programs)} programs in {seconds:.1f} s")
    assert len(verdicts) == 974
    assert [i for i, v in zip(rows, verdicts, strict=True) if not v.solved] == []
    assert seconds / 974 * 500 < 60
