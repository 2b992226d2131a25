"""The inside of common/sandbox.py: one generated program, and the judge of its answers. Not to be run by hand.

    python -S -s -B -u contained.py < messages > verdict.json          in an empty directory

This process first gives up for ever what neither it nor a child of it will need: other files (Landlock), memory, time
and file size (rlimits). It then forks. The child also gives up every system call that is not in CALLS (seccomp), and
all capabilities; it checks that the walls stand, runs the program, and sends what the tests ask for through a pipe, as
plain data. The parent reads the pipe, kills the child in time, and compares the answers with what the tests expect,
which it has read after the fork: the program can't find it in memory. No word of the program about its own success
counts. Linux only; nothing here may import what is not in the standard library.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections import deque

libc = ctypes.CDLL(None, use_errno=True)

# --- files: Landlock (linux/landlock.h)
WRITE, READ, READ_DIR, REMOVE, MAKE, TRUNCATE = (1 << i for i in (1, 2, 3, 5, 8, 14))
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


def landlock_version() -> int:
    """0 where the kernel has no Landlock, or has it switched off."""
    return max(0, libc.syscall(444, None, ctypes.c_size_t(0), 1))


def readable() -> list[str]:
    """What an interpreter reads while it runs: its standard library and shared libraries."""
    return [*sys.path, os.path.join(sys.base_prefix, "lib"), *SYSTEM, *DEVICES]


def restrict_files(home: str) -> None:
    """From now on this process and its children can open what is `readable`, and files right in `home`."""
    version = landlock_version()
    rights = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    # file system; binding and connecting TCP (since version 4); signals and abstract sockets out of here (since 6)
    scope = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    scope = scope[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = libc.syscall(444, scope, ctypes.c_size_t(len(scope)), 0)
    must(ruleset, "landlock_create_ruleset")
    # no directories, links, sockets or devices: what a program leaves is flat, and can be looked through and removed
    rules = [(home, READ | WRITE | READ_DIR | REMOVE | MAKE | TRUNCATE)]
    rules += [(path, READ | READ_DIR | (WRITE if path == "/dev/null" else 0)) for path in readable()]
    for path, allowed in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not every system has every directory
        if not os.path.isdir(path):
            allowed &= READ | WRITE
        rule = struct.pack("=Qi", allowed & rights, fd)
        must(libc.syscall(445, ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(fd)
    must(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    must(libc.syscall(446, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


# --- system calls: seccomp (linux/seccomp.h, linux/filter.h)
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit architecture, column of CALLS
# name: number on x86_64, on aarch64. No fork, thread, exec, socket, mode or owner of a file, other process's memory.
# fmt: off
CALLS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "lseek": (8, 62), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "sendfile": (40, 71), "ftruncate": (77, 46), "fsync": (74, 82),
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166),
    "getdents64": (217, 61), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98), "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None),
    "getitimer": (36, 102), "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160), "getcpu": (309, 168),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getrandom": (318, 278), "exit": (60, 93),
    "exit_group": (231, 94),
}
GUARDED = {  # name: (numbers, argument, its allowed values)
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # copies and flags; F_SETOWN could send signals to others
    "ioctl": ((16, 29), 1, (0x5401, 0x5450, 0x5451)),  # isatty, and close-on-exec
    "kill": ((62, 129), 0, "own"), "tkill": ((200, 130), 0, "own"), "tgkill": ((234, 131), 0, "own"),  # oneself
}
OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # name: (numbers, argument with the flags)
# fmt: on
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call returns EPERM


def seccomp_filter(machine: str, pid: int) -> bytes:
    """The filter as a BPF program: instructions of (code, jump if true, jump if false, operand)."""
    audit, column = MACHINES[machine]
    load, equal, ret, mask = 0x20, 0x15, 0x06, 0x54
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (ret, 0, 0, KILL), (load, 0, 0, 0)]
    for numbers in CALLS.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (ret, 0, 0, ALLOW)]
    blocks = []
    for numbers, argument, values in GUARDED.values():
        allowed = [pid] if values == "own" else values
        tests = [step for v in allowed for step in ((equal, 0, 1, v), (ret, 0, 0, ALLOW))]
        blocks.append((numbers, [(load, 0, 0, 16 + 8 * argument), *tests, (ret, 0, 0, REFUSE)]))
    for numbers, argument in OPEN.values():
        # before version 3, Landlock lets a file be emptied by who may only read it
        flags = [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, os.O_TRUNC | os.O_ACCMODE)]
        blocks.append((numbers, [*flags, (equal, 0, 1, os.O_TRUNC), (ret, 0, 0, REFUSE), (ret, 0, 0, ALLOW)]))
    for numbers, block in blocks:
        if numbers[column] is not None:
            program += [(equal, 0, len(block), numbers[column]), *block]
    program.append((ret, 0, 0, REFUSE))
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def restrict_calls() -> None:
    """From now on this process is alone: it can compute, and use what it has open and what Landlock lets it open."""
    must(libc.capset(ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0)), bytes(24)), "capset")
    code = ctypes.create_string_buffer(seccomp_filter(os.uname().machine, os.getpid()))
    program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
    must(libc.prctl(22, 2, program, 0, 0), "PR_SET_SECCOMP")


def limit(kind: int, value: int) -> None:
    """Set a resource limit that can't be raised again; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def must(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def breaches(parent: int) -> list[str]:
    """Forbidden acts that succeed, tried before the program is let in: filters can be accepted and not work."""
    acts = {
        "list /": lambda: os.listdir("/"),
        "read /proc": lambda: open("/proc/self/status").close(),
        "send a signal": lambda: os.kill(parent, 0),
        "open a socket": lambda: must(libc.socket(2, 1, 0), "socket"),
        "make a directory": lambda: os.mkdir("d"),
        "fork": lambda: os.fork() or os._exit(0),
    }
    found = []
    for name, act in acts.items():
        try:
            act()
        except OSError:
            continue
        found.append(name)
    return found


# --- the program's side
CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}


def plain(x):
    """A value as JSON: numbers, strings and None as they are, containers as [kind, item, ...]. TypeError for others."""
    if x is None or isinstance(x, (int, float, str)):
        return x
    if isinstance(x, dict):
        return ["dict", *([plain(k), plain(v)] for k, v in dict.items(x))]
    for name, kind in CONTAINERS.items():
        if isinstance(x, kind):
            return [name, *(plain(item) for item in kind.__iter__(x))]
    if isinstance(x, complex):
        return ["complex", x.real, x.imag]
    if isinstance(x, (bytes, bytearray)):
        return ["bytes", *x]
    raise TypeError(f"an answer of type {type(x).__name__} is not plain data")


def describe(e: BaseException) -> str:
    try:
        return f"{type(e).__name__}: {e}"[:300]
    except BaseException:  # the program's own exception may do anything when it is turned into text
        return type(e).__name__


def run_program(job: dict, answers: int) -> None:
    """Execute the program, its setup, and each question; tell `answers`, a file descriptor, how it went."""

    def tell(*event) -> None:
        line = json.dumps(event).encode() + b"\n"
        while line:
            line = line[os.write(answers, line) :]

    module = type(sys)("program")
    sys.modules["program"] = module  # dataclasses and typing look up where a class was defined
    try:
        exec(compile(job["code"], "program.py", "exec"), module.__dict__)
        tell("ran")
        exec(compile(job["setup"], "setup.py", "exec"), module.__dict__)
        for i, question in enumerate(job["questions"]):
            try:
                value = plain(eval(question, module.__dict__))
            except BaseException as e:  # also SystemExit: to leave is no answer
                tell("raised", i, describe(e))
            else:
                tell("answer", i, value)
        tell("end")
    except BaseException as e:
        tell("stopped", describe(e))


def enter(job: dict, answers: int, output: int, parent: int) -> None:
    """What the forked child does; never returns."""
    try:
        must(libc.prctl(1, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
        if os.getppid() != parent:
            os._exit(1)
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2), (answers, 3)):
            os.dup2(source, target)  # answers is above 3, so nothing is overwritten before it is copied
        os.closerange(4, 1024)
        limit(resource.RLIMIT_NPROC, 0)
        restrict_calls()
        found = breaches(parent)
        os.write(3, json.dumps(found).encode() + b"\n")  # the first line: no program can have written it
        if not found:
            run_program(job, 3)
    except BaseException as e:  # a wall could not be built: the output says which
        os.write(output, describe(e).encode())
    finally:
        os._exit(0)


# --- the judge's side
def used(home: str) -> int:
    """Bytes on disk, an empty file counting as a block, so that the number of files is bounded too."""
    total = 0
    for entry in os.scandir(home):
        with contextlib.suppress(OSError):  # it may be gone by now
            total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
    return total


def watch(job: dict, pid: int, answers: int, output: int) -> tuple[str, dict[int, bytearray]]:
    """Read both pipes until the child `pid` is gone -> (why it was stopped or what ended it or "", what was read)."""
    start, why, data, alive = time.monotonic(), "", {answers: bytearray(), output: bytearray()}, os.pidfd_open(pid)
    unread, look = {answers, output, alive}, start + 0.1  # the child is all that can write: when it goes, all three end
    while unread:
        now = time.monotonic()
        if not why and now - start > job["seconds"]:
            why = "timeout"
        if not why and now > look:
            why, look = "disk" if used(".") > job["disk"] else "", now + 0.1
        if why and alive in unread:
            os.kill(pid, signal.SIGKILL)
        for fd in select.select(list(unread), [], [], 0.1)[0]:
            block = b"" if fd == alive else os.read(fd, 1 << 16)
            if not block:
                unread.discard(fd)
                continue
            data[fd] += block
            if len(data[fd]) > job["output"]:
                why = why or "output"
                del data[fd][job["output"] :]
    _, code, usage = os.wait4(pid, 0)
    if not why and os.WIFSIGNALED(code):
        cpu = usage.ru_utime + usage.ru_stime
        why = "timeout" if cpu > job["cpu_seconds"] - 0.2 else f"signal {os.WTERMSIG(code)}"
    return why, data


def value_of(x):
    """The value that `plain` made JSON of; anything else is a ValueError or TypeError."""
    if not isinstance(x, list):
        return x
    kind, *items = x
    if kind == "dict":
        return {value_of(k): value_of(v) for k, v in items}
    if kind == "complex":
        return complex(*items)
    if kind == "bytes":
        return bytes(items)
    return CONTAINERS[kind](value_of(item) for item in items)


class Names(dict):
    """What an expected value may mention: `_`, the answer, and modules of the standard library."""

    def __missing__(self, name: str):
        if name in sys.stdlib_module_names:
            return __import__(name)
        raise KeyError(name)


def judge(checks: list[str], why: str, lines: list[bytes]) -> dict:
    """The verdict. The program can have written anything into `lines`: one counts for the value that it gives."""
    passed, seen, message, n = [False] * len(checks), set(), "", 0
    for line in lines:
        try:
            kind, *rest = json.loads(line)
            if kind in ("answer", "raised"):
                i, content = rest
                if i != n:
                    raise ValueError("answers out of order")  # each question has one answer: no second guess
                n += 1
            if kind == "answer":
                passed[i] = bool(eval(checks[i], {}, Names(_=value_of(content))))
            elif rest:
                message = message or str(rest[-1])[:300]
            seen.add(kind)
        except Exception as e:  # garbage, or an answer that the comparison can't take: this test isn't passed
            message = message or f"{type(e).__name__}: {e}"[:300]
    status = why or ("exception" if "stopped" in seen else "ok" if "end" in seen else "exit")
    return {"status": status, "ran": "ran" in seen, "passed": passed, "message": message}


def receive():
    """One message from stdin, and not a byte of the next: 12 digits, its length in bytes, and so much JSON."""

    def take(n: int) -> bytes:
        data = b""
        while len(data) < n:
            if not (block := os.read(0, n - len(data))):
                sys.exit("stdin ended within a message")
            data += block
        return data

    return json.loads(take(int(take(12))))


def main() -> None:
    job = receive()
    must(libc.prctl(1, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != job["parent"]:
        os._exit(1)  # it ended before it could have been noticed
    limit(resource.RLIMIT_CPU, job["cpu_seconds"])
    limit(resource.RLIMIT_AS, job["memory"])
    limit(resource.RLIMIT_FSIZE, job["file_size"])
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_CORE, 0)
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # its modules are not the program's
    restrict_files(os.getcwd())
    (answers, answers_in), (output, output_in) = os.pipe(), os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        enter(job, answers_in, output_in, parent)
    os.close(answers_in)
    os.close(output_in)
    checks = receive()
    why, data = watch(job, pid, answers, output)
    walls, *lines = data[answers].split(b"\n")[:-1] or [b"[]"]
    verdict = judge(checks, why, lines)
    if found := json.loads(walls):
        verdict |= {"status": "uncontained", "message": ", ".join(found)}
    json.dump(verdict | {"output": data[output][-2000:].decode("utf-8", "replace")}, sys.stdout)


if __name__ == "__main__":
    main()
