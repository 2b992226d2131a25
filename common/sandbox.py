"""Executing generated programs: each in a process of its own that can compute, and nothing else.

    verdicts = sandbox.run([Program("def f(x): return x + 1", tests=("assert f(1) == 2",))])

What holds a program (common/contained.py, Linux 5.13 or newer, with or without root, also in a container):
- files: it reads the standard library and shared libraries, and writes in an empty directory of its own, which is its
  HOME (Landlock). Names and sizes of other files can still be learnt with stat().
- processes: no fork, thread or exec, no signal to another process, no socket (seccomp allows a list of system calls
  and refuses the rest). It dies with the process that watches it, and that one with this one.
- amounts: CPU and wall time, memory, size of a file and of all files, output (rlimits and the watching process).
A program tries to break out in six ways before its code is let in; if one succeeds, nothing is run.

What holds a verdict: a test `assert LEFT == RIGHT` is split. The program's process computes LEFT and sends it as plain
data; another process, which runs none of the program's code, compares it with RIGHT. The former never has RIGHT, the
latter takes nothing from it but values. So a program can leave early, print that it passed, replace builtins, return
objects that equal everything, or write into the pipe itself: it passes if and only if it gives the right values.

Not defended: a program that knows the expected values by heart, because the prompt shows them, as MBPP's does; `ran`,
which rests on the program's own word; an assert that is not one comparison with a constant, whose truth is computed
in the program's process. An answer that is no plain data (an iterator, an object of the program) equals nothing. Two
programs that run at once share the processors and the disk. A hole in the kernel is a hole in here.
"""

import ast
import builtins
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError

INSIDE = Path(__file__).resolve().with_name("contained.py")


@dataclass(frozen=True)
class Program:
    code: str
    setup: str = ""  # executed after the code, before the tests
    tests: tuple[str, ...] = ()  # each one assert


@dataclass(frozen=True)
class Limits:
    cpu_seconds: int = 10  # the slowest of the 974 programs that MBPP comes with takes 3
    seconds: float = 30.0  # of wall time: for one that sleeps, or waits for a processor
    memory: int = 512 << 20  # bytes of address space
    file_size: int = 1 << 20  # bytes of one file
    disk: int = 16 << 20  # bytes of all files, looked at ten times a second
    output: int = 1 << 20  # bytes printed, and bytes of answers


@dataclass(frozen=True)
class Verdict:
    """status: ok | exception (in the program or its setup) | timeout | output | disk (too much of it) | signal N |
    exit (it left before the last test) | killed (with the process that watched it).

    ran: the program itself was executed to its end, by its own word. passed: of each test. message: the first error.
    output: the end of what it printed.
    """

    status: str
    ran: bool
    passed: tuple[bool, ...]
    message: str = ""
    output: str = ""

    @property
    def solved(self) -> bool:
        return self.status == "ok" and all(self.passed)


# --- tests
def question(test: str) -> tuple[str, str]:
    """An assert -> what the program is asked for, and the comparison of its answer `_` that the judge makes.

    UserError if it is not exactly one assert.
    """
    try:
        body = ast.parse(test.strip()).body
    except SyntaxError as e:
        raise UserError(f"the test {test!r} is not Python ({e.msg}): mend it") from e
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise UserError(f"the test {test!r} is not one assert: split it or mend it")
    truth = body[0].test
    if isinstance(truth, ast.Compare) and len(truth.ops) == 1 and constant(truth.comparators[0]):
        judged = ast.Compare(ast.Name("_", ast.Load()), truth.ops, truth.comparators)
        return ast.unparse(truth.left), ast.unparse(judged)
    return f"not not ({ast.unparse(truth)})", "_ is True"


def constant(node: ast.expr) -> bool:
    """Whether an expression means the same without the program: its names are builtins or standard modules."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return all(hasattr(builtins, name) or name in sys.stdlib_module_names for name in names)


# --- running
@functools.cache
def missing() -> str:
    """What this machine lacks to contain a program, in words; "" if nothing. Tried out once, with a program."""
    if sys.platform != "linux":
        return f"they can be contained on Linux only, and this is {platform.system()}"
    from common import contained  # here: it needs Linux

    if platform.machine() not in contained.MACHINES:
        return f"the list of system calls is for {' and '.join(contained.MACHINES)}, and this is {platform.machine()}"
    if not contained.landlock_version():
        return (
            "Landlock, which came with Linux 5.13, is missing here, switched off (lsm=), or forbidden by the container"
        )
    verdict = execute(Program("x = 6 * 7", tests=("assert x == 42",)), Limits())
    why = (verdict.message or verdict.output).strip().split("\n")[-1]
    return "" if verdict.solved else f"a trial ended as {verdict.status!r} ({why or 'no reason given'})"


def require() -> None:
    """UserError unless programs can be contained here."""
    if lack := missing():
        raise UserError(f"generated programs are not executed, because nothing would contain them: {lack}")


def run(programs: list[Program], limits: Limits | None = None, workers: int = 0) -> list[Verdict]:
    """A verdict for each program; `workers` at once (0: one for each available processor). UserError: see require."""
    require()
    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        verdicts = list(pool.map(lambda p: execute(p, limits or Limits()), programs))
    for verdict in verdicts:
        if verdict.status == "uncontained":
            raise UserError(f"programs are no longer contained here, they could {verdict.message}: nothing was scored")
    return verdicts


def message(content: dict | list) -> bytes:
    body = json.dumps(content).encode()
    return b"%012d" % len(body) + body


def execute(program: Program, limits: Limits) -> Verdict:
    pairs = [question(test) for test in program.tests]
    job = asdict(limits) | {
        "code": program.code,
        "setup": program.setup,
        "questions": [asked for asked, _ in pairs],
        "parent": os.getpid(),
    }
    messages = b"".join(map(message, (job, [judged for _, judged in pairs])))
    keep = {k: os.environ[k] for k in ("LD_LIBRARY_PATH", "PYTHONHOME") if k in os.environ}  # to find its libraries
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as home:
        # the hash seed: a program whose result hangs on the order of a set does the same every time
        env = keep | {"HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-S", "-s", "-B", "-u", str(INSIDE)]
        pipe = subprocess.PIPE
        channels = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
        # in its own session: Ctrl-C is for the trainer, which finishes its evaluation first
        with subprocess.Popen(command, **channels, cwd=home, env=env, start_new_session=True) as process:
            try:
                # the process keeps the limits itself; this is for when it is stuck
                out, err = process.communicate(messages, limits.seconds + limits.cpu_seconds + 10)
                verdict = json.loads(out)
                return Verdict(**verdict | {"passed": tuple(verdict["passed"])})
            except (subprocess.TimeoutExpired, ValueError) as e:
                process.kill()
                text = err.decode("utf-8", "replace")[-2000:] if isinstance(e, ValueError) else "no verdict in time"
                return Verdict("killed", False, (False,) * len(pairs), text)
