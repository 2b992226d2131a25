"""MBPP, and the execution of programs that mean harm: none gets out, none passes, none is left."""

import fractions
import importlib.util
import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import tasks
from common import sandbox
from common.errors import UserError
from common.sandbox import Limits, Program
from common.tokenizer import get_tokenizer
from conftest import ROOT
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


# --- questions
@pytest.mark.parametrize(
    ("test", "asked", "judged"),
    [
        ("assert f(1) == [2, {'a'}]", "f(1)", "_ == [2, {'a'}]"),
        ("assert f(g(1))!=-1.5", "f(g(1))", "_ != -1.5"),
        ("assert f(1) is None, 'because'", "f(1)", "_ is None"),
        ("assert f(()) == sys.getsizeof(())", "f(())", "_ == sys.getsizeof(())"),
        ("assert set(f(1)) == set((1, 2))", "set(f(1))", "_ == set((1, 2))"),
        # the program's own names on the right, or another form: its process says whether it holds
        ("assert f(1) == Pair(1, 2)", "not not (f(1) == Pair(1, 2))", "_ is True"),
        ("assert not f(1)", "not not (not f(1))", "_ is True"),
        ("assert 1 < f(1) < 3", "not not (1 < f(1) < 3)", "_ is True"),
        ("assert f(1) == [x for x in (1, 2)]", "not not (f(1) == [x for x in (1, 2)])", "_ is True"),
    ],
)
def test_a_test_is_split(test, asked, judged):
    assert sandbox.question(test) == (asked, judged)


@pytest.mark.parametrize("test", ["f(1) == 2", "assert f(1) == 2; assert f(2) == 3", "assert", "x = 1", ""])
def test_what_is_no_test(test):
    with pytest.raises(UserError, match="the test"):
        sandbox.question(test)


# --- honest programs
def verdict(code, *tests, setup="", **limits):
    (v,) = sandbox.run([Program(code, setup, tests)], Limits(**limits))
    return v


@contained
def test_verdicts_of_honest_programs():
    code = "def f(x):\n    print('hi', x)\n    return x + 1"
    v = verdict(code, "assert f(1) == 2", "assert f(2) == 2", "assert f(3) > 3")
    assert (v.status, v.ran, v.passed, v.output) == ("ok", True, (True, False, True), "hi 1\nhi 2\nhi 3\n")
    assert not v.solved
    v = verdict("def f(x):\n    return 6 // x", "assert f(0) == 1", "assert f(3) == 2")
    assert (v.status, v.passed) == ("ok", (False, True))
    assert v.message.startswith("ZeroDivisionError: ")
    v = verdict("def f(x):\nreturn 1", "assert f(0) == 1")
    assert (v.status, v.ran, v.passed) == ("exception", False, (False,))
    assert "IndentationError" in v.message
    v = verdict("class N:\n    pass", "assert n.x == 1", setup="n = N(); n.x = 1")
    assert v.solved
    v = verdict("def f():\n    import datetime, hashlib, random, re, ssl, zoneinfo\n    return 1", "assert f() == 1")
    assert v.solved, v
    assert verdict("").solved  # nothing asked, nothing wrong
    v = verdict("def f():\n    while True: pass", "assert 1 == 1", "assert f() == 1", cpu_seconds=1)
    assert (v.status, v.passed) == ("timeout", (True, False))  # what came before counts


@contained
def test_answers_arrive_as_they_are():
    inf = float("inf")
    values = [
        None, True, 0, -1, 10**30, 1.5, inf, 1e-300, 2j, "", "Grüße\n\0\ud800", b"\xff", (), (1,), [[]],
        {1: (2, [3])}, {(1, 2): {"a"}}, set(), frozenset({1, "1"}), [None, {"k": [True, 1.0]}],
    ]  # fmt: skip
    rights = [repr(value).replace("inf", "1e999") for value in values]
    v = verdict(f"inf = 1e999\nv = {values!r}", *(f"assert v[{i}] == {right}" for i, right in enumerate(rights)))
    assert v.solved, v
    # what equals nothing, as it would in one process: other types, order, a value that is not one
    wrong = "v = [[1, 2], (1,), iter([1]), float('nan'), '1', {1: 2}]"
    rights = ["(1, 2)", "[1]", "[1]", "float('nan')", "1", "{1: 3}"]
    v = verdict(wrong, *(f"assert v[{i}] == {right}" for i, right in enumerate(rights)))
    assert v.passed == (False,) * 6
    code = "from collections import *\nv = [Counter('aab'), OrderedDict(a=1), namedtuple('P', 'x y')(1, 2), deque([1])]"
    v = verdict(code, "assert v[0] == {'a': 2, 'b': 1}", "assert v[1] == {'a': 1}", "assert v[2] == (1, 2)",
                "assert v[3] == collections.deque([1])", "assert v[3] == [1]")  # fmt: skip
    assert v.passed == (True, True, True, True, False)


@contained
def test_the_expected_value_is_nowhere_to_be_found():
    # all strings that can be reached from the frames on the stack, the modules and the garbage collector
    code = """if True:
        import gc, re, sys
        def hunt(word):
            todo = [*gc.get_objects(), *sys.modules.values()]
            frame = sys._getframe()
            while frame:
                todo += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back
            for x in todo:
                for y in [x, *gc.get_referents(x)]:
                    if m := isinstance(y, (str, bytes)) and re.search(f"{word}[0-9]+", str(y)):
                        return m[0]
            return "nothing"
    """
    assert verdict(code + "    here = 'walrus123'", "assert hunt('walrus') == 'walrus123'").solved  # it can hunt
    v = verdict(code, "assert hunt('walrus') == 'walrus123'", "assert hunt('walrus') == 'nothing'")
    assert v.passed == (False, True), v


@contained
def test_its_own_directory():
    code = "import os, tempfile\nopen('a', 'w').write('b')\nhome = os.environ['HOME']\n"
    code += "keys = sorted({*os.environ} - {'LD_LIBRARY_PATH', 'PYTHONHOME'})\n"
    code += "names, back = os.listdir(home), open(home + '/a').read()\n"
    code += "same = os.getcwd() == home == tempfile.gettempdir()"
    v = verdict(code, "assert names == ['a']", "assert back == 'b'", "assert same == True",
                "assert keys == ['HOME', 'LC_ALL', 'PYTHONHASHSEED', 'PYTHONUTF8', 'TMPDIR']")  # fmt: skip
    assert v.solved, v


# --- hostile programs
ADD = "\ndef f(x): return x + 1\n"  # what would pass if the rest didn't matter
LOOP = "\nwhile True: pass\n"
TRY = "import os, sys, signal\ndef attempt(act, *args):\n    try: act(*args)\n    except BaseException: pass\n"
LINES = '["ran"]\\n["answer", 0, {value}]\\n["end"]\\n'
FORGED = (
    "import os\nfor fd in range(64):\n    try: os.write(fd, b'{text}')\n    except OSError: pass\n"
    "def f(x): os._exit(0)\n"
)

# name: (program, the status that it ends with); CANARY, HOME, PORT and PARENT are filled in
HOSTILE = {
    # processes
    "fork": ("import os\nos.fork()" + ADD, "exception"),
    "fork bomb": (TRY + "while True: attempt(os.fork)", "timeout"),
    "daemon": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass",
        "exception",
    ),
    "subprocess": ("import subprocess\nsubprocess.Popen(['sleep', '100'])" + ADD, "exception"),
    "posix_spawn": ("import os\nos.posix_spawn('/bin/sleep', ['sleep', '100'], {})" + ADD, "exception"),
    "exec": ("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo'])", "exception"),
    "multiprocessing": ("from multiprocessing import Pool\nwith Pool(2) as p: p.map(len, ['a'])", "exception"),
    "threads that never end": (
        "import threading\ndef spin():\n    while True: pass\n"
        "for _ in range(10**6): threading.Thread(target=spin).start()" + ADD,
        "exception",
    ),
    "kill parent": ("import os\nos.kill(os.getppid(), 9)" + ADD, "exception"),
    "kill runner": ("import os\nos.kill(PARENT, 9)" + ADD, "exception"),
    "kill everybody": ("import os\nos.kill(-1, 9)" + ADD, "exception"),
    "kill group": ("import os\nos.killpg(0, 9)" + ADD, "exception"),
    "kill in every way": (
        TRY + "import ctypes\nlibc = ctypes.CDLL(None)\nfor pid in (PARENT, os.getppid(), 0, -1):\n"
        "    for s in (9, 15, 19):\n        attempt(os.kill, pid, s)\n        libc.tgkill(pid, pid, s)\n"
        "        libc.sigqueue(pid, s, None)" + LOOP,
        "timeout",
    ),
    "signal by fcntl": ("import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 8, PARENT)" + ADD, "exception"),
    "ptrace": (
        "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise OSError" + ADD,
        "exception",
    ),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', PORT)).send(b'x')" + ADD, "exception"),
    "unix socket": ("import socket\nsocket.socket(socket.AF_UNIX)" + ADD, "exception"),
    # amounts
    "endless output": ("while True: print('x' * 1000)", "output"),
    "endless output to stderr": ("import os\nwhile True: os.write(2, b'x' * 65536)", "output"),
    "endless answer": ("def f(x): return 'x' * (10 << 20)", "output"),
    "endless loop": (LOOP, "timeout"),
    "endless sleep": ("import time\ntime.sleep(10**6)", "timeout"),
    "no input": ("input()" + ADD, "exception"),
    "deaf": (TRY + "for s in range(1, 65): attempt(signal.signal, s, signal.SIG_IGN)" + LOOP, "timeout"),
    "stopped": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)" + ADD, "timeout"),
    "huge allocation": ("x = bytearray(1 << 40)" + ADD, "exception"),
    "growing": ("x = []\nwhile True: x.append(bytearray(1 << 20))" + ADD, "exception"),
    "raised limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)" + ADD,
        "exception",
    ),
    "infinite recursion": ("def f(x): return f(x)\nf(1)", "exception"),
    "big file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "exception"),
    "many files": ("i = 0\nwhile True:\n    open(str(i), 'wb').write(bytes(1 << 16))\n    i += 1", "disk"),
    "directories": ("import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')", "exception"),
    # files
    "read home": ("import os\nos.listdir('HOME')" + ADD, "exception"),
    "read a file": ("open('CANARY').read()" + ADD, "exception"),
    "read passwords": ("open('/etc/passwd').read()" + ADD, "exception"),
    "read environment": ("open('/proc/PARENT/environ').read()" + ADD, "exception"),
    "read memory": ("open('/proc/self/mem', 'rb').read()" + ADD, "exception"),
    "append": ("open('CANARY', 'a').write('x')" + ADD, "exception"),
    "truncate": ("import os\nos.truncate('CANARY', 0)" + ADD, "exception"),
    "truncate what it reads": ("import os, this\nos.open(this.__file__, os.O_RDONLY | os.O_TRUNC)" + ADD, "exception"),
    "write the library": ("import this\nopen(this.__file__, 'a')" + ADD, "exception"),
    "remove": ("import os\nos.remove('CANARY')" + ADD, "exception"),
    "rename": ("import os\nos.rename('CANARY', 'mine')" + ADD, "exception"),
    "rename over": ("import os\nopen('x', 'w').close()\nos.replace('x', 'CANARY')" + ADD, "exception"),
    "change mode": ("import os\nos.chmod('CANARY', 0)" + ADD, "exception"),
    "change time": ("import os\nos.utime('CANARY', (0, 0))" + ADD, "exception"),
    "write beside": ("open('../beside', 'w')" + ADD, "exception"),
    "symlink escape": ("import os\nos.symlink('CANARY', 'x')\nopen('x').read()" + ADD, "exception"),
    "hard link": ("import os\nos.link('CANARY', 'x')" + ADD, "exception"),
    # ends
    "stack overflow": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\nrepr(A())",
        "signal 11 or exception",  # from Python 3.12 on
    ),
    "crash": ("import ctypes\nctypes.string_at(0)", "signal 11"),
    "abort": ("import os\nos.abort()", "signal 6"),
    "leave with 0": ("import os\nos._exit(0)" + ADD, "exit"),
    "leave with 255": ("import os\nos._exit(255)" + ADD, "exit"),
    "leave later": ("import os\ndef f(x): os._exit(0)", "exit"),
    "sys.exit": ("import sys\nsys.exit(0)" + ADD, "exception"),
    "sys.exit later": ("import sys\ndef f(x): sys.exit(0)", "ok"),
    "close everything": ("import os\nos.closerange(0, 64)" + ADD, "exit"),
    "close everything and stay": ("import os\nos.closerange(0, 64)" + LOOP, "timeout"),
    "mix up descriptors": (TRY + "for fd in range(1, 64): attempt(os.dup2, 0, fd)" + ADD, "exit"),
    # verdicts
    "says passed": ("print('ok', 'PASSED', '1 passed in 0.01s')\nraise SystemExit(0)", "exception"),
    "forged verdict": (FORGED.format(text='{"status": "ok", "ran": true, "passed": [true], "message": ""}\\n'), "exit"),
    "forged answer": (FORGED.format(text=LINES.format(value="true")), "ok"),
    "forged check": (FORGED.format(text=LINES.format(value='"_ == 2"')), "ok"),
    "forged guesses": (FORGED.format(text="".join(f'["answer", 0, {i}]\\n' for i in (1, 2, 3))), "exit"),
    "forged hole": (FORGED.format(text='["fork"]\\n["uncontained", "fork"]\\n'), "exit"),
    "nested garbage": ("import os\ndef f(x):\n    os.write(3, b'[' * 100000 + b'\\n')\n    os._exit(0)", "exit"),
    "answer that is slow to read": (
        "import json, os\ndef f(x):\n    numbers = (i * (2**61 - 1) for i in range(40000))  # all with the same hash\n"
        "    os.write(3, json.dumps(['answer', 0, ['set', *numbers]]).encode() + b'\\n')\n    os._exit(0)",
        "killed",
    ),
    "equal to everything": ("class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()", "ok"),
    "number equal to everything": (
        "class Yes(int):\n    def __eq__(self, other): return True\ndef f(x): return Yes(7)",
        "ok",
    ),
    "other builtins": ("import builtins\nbuiltins.eval = lambda *_: True\nbuiltins.AssertionError = SystemExit", "ok"),
    "other json": ("import json\njson.dumps = lambda *_: '[\"answer\", 0, true]'" + ADD, "exit"),
}


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory):
    """All hostile programs, run at once -> {name: verdict}, what of the world is to be as it was."""
    if lack := sandbox.missing():
        pytest.skip(f"no containment here: {lack}")
    outside = tmp_path_factory.mktemp("outside")
    canary, library = outside / "canary", Path(importlib.util.find_spec("this").origin)
    canary.write_text("alive")
    before = canary.stat(), library.stat()
    place, tempfile.tempdir = tempfile.tempdir, str(outside)
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.01)
    fill = {"CANARY": canary, "HOME": Path.home(), "PORT": server.getsockname()[1], "PARENT": os.getpid()}
    codes = [re.sub("|".join(fill), lambda m: str(fill[m[0]]), code) for code, _ in HOSTILE.values()]
    limits = Limits(cpu_seconds=1, seconds=6.0, memory=256 << 20)
    try:
        verdicts = sandbox.run([Program(code, tests=("assert f(1) == 2",)) for code in codes], limits, workers=4)
        yield dict(zip(HOSTILE, verdicts, strict=True)), outside, before, library, server
    finally:
        tempfile.tempdir = place
        server.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(aftermath, name):
    v = aftermath[0][name]
    assert not v.solved
    assert v.passed == (False,)
    assert v.status in HOSTILE[name][1].split(" or "), v


def test_nothing_is_left_of_them(aftermath):
    _, outside, (canary, library_before), library, server = aftermath
    assert [p.name for p in outside.iterdir()] == ["canary"]
    now = (outside / "canary").stat()
    assert (now.st_size, now.st_mode, now.st_mtime, now.st_nlink) == (5, canary.st_mode, canary.st_mtime, 1)
    assert (library.stat().st_size, library.stat().st_mtime) == (library_before.st_size, library_before.st_mtime)
    with pytest.raises(TimeoutError):
        server.accept()
    assert processes_in(outside) == []


def processes_in(folder: Path) -> list[str]:
    """Ids of the processes whose working directory is, or was, below `folder`."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            where = os.readlink(link)
        except OSError:
            continue  # it is gone, or somebody else's
        if where.startswith(f"{folder}/"):
            found.append(link.parent.name)
    return found


@contained
def test_programs_go_with_who_runs_them(tmp_path):
    code = f"""if True:
        import sys, tempfile
        tempfile.tempdir = {str(tmp_path)!r}
        from common.sandbox import Limits, Program, run, missing
        assert not missing()
        print("go", flush=True)
        run([Program("while True: pass")] * 2, Limits(cpu_seconds=60, seconds=60.0), workers=2)
    """
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as runner:
        assert runner.stdout.readline() == b"go\n"
        wait_for(lambda: len(processes_in(tmp_path)) >= 3)  # two that watch, at least one that loops
        runner.kill()
    wait_for(lambda: not processes_in(tmp_path))


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contained
def test_the_walls_are_tried(tmp_path):
    # outside of them, all six acts succeed: so the trial can find a hole
    code = f"import os, sys; sys.path[0] = {str(ROOT)!r}; from common.contained import breaches; "
    code += "print(breaches(os.getppid()))"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = ["list /", "read /proc", "send a signal", "open a socket", "make a directory", "fork"]
    assert out.strip().splitlines()[-1] == str(found)


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
