"""One run as a process of train_sft.py: started, waited for, resumed, and made into the line of a record."""

import contextlib
import hashlib
import subprocess
import sys
import time
from pathlib import Path

from common import run
from common.errors import UserError

try:
    import fcntl  # its locks pass to a child, so that a run that outlives the search still holds its own
except ImportError:  # Windows
    fcntl = None


def code_version() -> str:
    """A hash of every source that a run depends on: two runs may be paired only if it is the same."""
    files = [run.ROOT / "train_sft.py", run.ROOT / "model.py"]
    files += sorted(p for d in ("common", "tasks", "wkv_cuda") for p in (run.ROOT / d).iterdir() if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()[:16]


def flags(values: dict) -> list[str]:
    """{key: value} as train_sft.py's command line takes it; a dict is set item by item."""
    out = []
    for key, value in values.items():
        items = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        out += [f"--{k}={v if isinstance(v, str) else repr(v)}" for k, v in items.items()]
    return out


def command(spec: dict, folder: Path) -> list[str]:
    """A fresh run, or the same again from where a killed one was saved."""
    saved = sorted(folder.glob("*/last/trainer.pt"), key=lambda p: p.stat().st_mtime)
    what = [spec["task_config"], f"--out_dir={spec['folder']}", *flags(spec["settings"])]
    if saved:
        what = [f"--resume={spec['folder']}/{saved[-1].parents[1].name}"]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={spec['processes']}", "--standalone"]
    return [sys.executable, *(torchrun if spec["processes"] > 1 else []), "train_sft.py", *what]


@contextlib.contextmanager
def owned(folder: Path, limit: float):
    """Hold a run's directory -> the file descriptor to pass on; waits for a run that a killed search left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as f:
        start = time.monotonic()
        while fcntl:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - start > limit:
                    raise UserError(f"{folder}: a run from before still works there, stop it first") from None
                time.sleep(0.1)
        yield f.fileno()


def execute(spec: dict, tick=lambda line: None) -> dict:
    """Run one spec to its end, however often it is called -> its record. tick: called with the run's latest line."""
    folder, start, reason = run.ROOT / spec["folder"], time.monotonic(), ""
    with owned(folder, spec["time_limit"]) as lock:
        log = folder / "output.txt"
        if not list(folder.glob("*/result.json")):
            with open(log, "wb") as f:
                keep = dict(pass_fds=(lock,)) if fcntl else {}
                child = subprocess.Popen(command(spec, folder), cwd=run.ROOT, stdout=f, stderr=f, **keep)
            try:
                while child.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(0.2)
                    tick(last_line(log))
                    if time.monotonic() - start > spec["time_limit"]:
                        child.kill()
                        reason = f"time limit of {spec['time_limit']:g} s"
            except KeyboardInterrupt:  # the run has had it too: it saves, and is resumed next time
                child.wait()
                raise
            if child.returncode in (130, -2, -15):
                raise KeyboardInterrupt
            if child.returncode == -9 and not reason:
                reason = "killed: out of memory?"
        return record_of(spec, folder, reason or last_line(log), time.monotonic() - start)


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return next((line.strip() for line in [*errors, *reversed(lines)] if line.strip()), "no output")


def record_of(spec: dict, folder: Path, error: str, seconds: float) -> dict:
    """The line of records.jsonl: what was asked, what came of it, and on what it ran."""
    record = {k: spec[k] for k in ("key", "stage", "candidate", "overrides", "steps", "seed", "prune", "code")}
    found = sorted(folder.glob("*/result.json"))
    record |= dict(kind="run", status="ok" if found else "failed", error="" if found else error, seconds=seconds)
    record["run_dir"] = spec["folder"]  # of a failed run: its output.txt is there
    if found:
        result, rows = run.read_json(found[0]), run.read_metrics(found[0].parent)
        last = [r for r in rows if r["kind"] == "train"][-1:]
        metrics = result["result"]
        record |= {k: result[k] for k in ("metric", "config", "levels", "val_hash", "base_sha256")}
        record |= {k: result[k] for k in ("commit", "uncommitted_changes", "torch", "python", "platform", "gpu")}
        record |= {k: result["config"][k] for k in ("task", "bsz", "data_seed")} | dict(metrics=metrics)
        record |= dict(tokens=last[0]["tokens"] if last else 0, memory_gib=last[0]["memory_gib"] if last else 0.0)
        curve = [[r["step"], r[result["metric"]]] for r in rows if r["kind"] == "eval"]
        record |= dict(gate=metrics.get("gate", []), curve=curve, run_dir=f"{spec['folder']}/{found[0].parent.name}")
    return record
