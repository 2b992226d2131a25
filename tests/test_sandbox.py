"""Executing programs: honest ones are judged right; of those that mean harm none gets out, passes or is left."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from common import sandbox
from common.errors import UserError
from common.sandbox import Limits, Program
from conftest import ROOT

contained = pytest.mark.skipif(bool(sandbox.missing()), reason=f"no containment here: {sandbox.missing()}")


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
