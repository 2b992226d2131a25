"""The record of a run: its directory, what it ran on, its log, its metrics and its plot."""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from common.errors import UserError
from common.files import replacing
from common.machine import at_its_best, processor_name

ROOT = Path(__file__).resolve().parents[1]


def cli(main: Callable[[], None]) -> None:
    """Run a script's main(): what the user can mend is one sentence and exit code 1, anything else a traceback."""
    at_its_best()
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        sys.exit("error: no space left on disk: free some and continue with --resume; what was saved before is whole")


_interrupted = _at_once = False


def interrupted() -> bool:
    """Whether Ctrl-C (or a polite kill) has come since catch_interrupt()."""
    return _interrupted


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within it, or a function that it decorates, Ctrl-C ends all: for evaluations, which begin when all is saved."""
    global _at_once
    _at_once = True
    try:
        if _interrupted:
            raise KeyboardInterrupt
        yield
    finally:
        _at_once = False


@contextlib.contextmanager
def catch_interrupt(run_dir: Path | None) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM only sets interrupted(), so that a step can be finished and saved; a second kills."""
    global _interrupted

    def handle(signum, frame):
        global _interrupted
        if _interrupted or _at_once:
            raise KeyboardInterrupt
        _interrupted = True

    _interrupted, old = False, {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        if run_dir:
            print(f"\nstopped and saved; continue with --resume={run_dir}", flush=True)
        raise
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def guard(run_dir: Path | None, advice: str) -> Iterator[None]:
    """Both of the above and below, for the time of training."""
    with out_of_memory(advice), catch_interrupt(run_dir):
        yield


@contextlib.contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn every way to run out of memory into one sentence that ends in `advice`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as e:
        raise UserError(f"out of memory: {advice}") from e
    except RuntimeError as e:
        if "can't allocate memory" not in str(e) and "not enough memory" not in str(e):
            raise
        raise UserError(f"out of memory: {advice}") from e


def new_run_dir(parent: str, name: str) -> Path:
    """parent/name-yyyymmdd-hhmmss, made now; never one that exists."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{i}" for i in range(2, 100))]:
        with contextlib.suppress(FileExistsError):
            path = Path(parent) / f"{name}-{stamp}{suffix}"
            path.mkdir(parents=True)
            return path
    raise UserError(f"could not make a new directory {parent}/{name}-{stamp}")


def newest_run(parent: str = "out") -> Path | None:
    """The newest directory below `parent` that holds a trained model (its last/model.pth), or None.

    What was trained with a start state is no model of its own.
    """
    models = [p for p in Path(parent).glob("**/last/model.pth") if not p.with_name("start.pt").exists()]
    models.sort(key=lambda p: p.stat().st_mtime)
    return models[-1].parents[1] if models else None


def environment() -> dict:
    """Versions, commit and machine: what a number needs to be reproduced."""

    def git(*args):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(["git", *args], cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),  # sums are rounded otherwise on another one
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "argv": sys.argv,
    }


def sha256(path: str | os.PathLike) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def write_json(path: str | os.PathLike, value) -> None:
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(f"{path} does not exist: is {Path(path).parent} the directory of a run?") from e
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}") from e


class Recorder:
    """What the user sees, also in log.txt, and metrics.jsonl (one object a line); does nothing if `run_dir` is None."""

    def __init__(self, run_dir: Path | None, sources: tuple[str, ...] = ()):
        self.dir = run_dir
        if run_dir:
            run_dir.mkdir(parents=True, exist_ok=True)
            if sources and not (run_dir / "log.txt").exists():  # the log alone says what was run
                for name in sources:
                    self.append("log.txt", f"==== {name}\n{(ROOT / name).read_text(encoding='utf-8')}")
                self.append("log.txt", f"==== {json.dumps(environment())}\n")

    def append(self, name: str, text: str) -> None:
        with open(self.dir / name, "a", encoding="utf-8") as f:
            f.write(text)

    def print(self, text: str = "") -> None:
        if self.dir:
            print(text, flush=True)
            self.append("log.txt", text + "\n")

    def progress(self, at: dict, loss: float, norm: float, lr: float, seconds: float, steps: int, every: int) -> None:
        """Record one training step; print a line every `every` steps. `at`: step, tokens and seconds so far."""
        if not self.dir:
            return
        row = dict(
            kind="train", step=at["step"], loss=loss, grad_norm=norm, lr=lr, tokens=at["tokens"], seconds=at["seconds"],
            memory_gib=peak_memory_gib(),
        )  # fmt: skip
        self.append("metrics.jsonl", json.dumps(row) + "\n")
        if at["step"] % every == 0 or at["step"] == steps:
            rate, left = at["tokens"] / at["seconds"], at["seconds"] / at["step"] * (steps - at["step"])
            self.print(
                f"step {at['step']:{len(str(steps))}d}/{steps} | loss {loss:.4f} | grad {norm:.2f} | lr {lr:.1e}"
                f" | {rate / 1e3:.1f}k tok/s | {seconds * 1e3:.0f} ms | {peak_memory_gib():.2f} GiB"
                f" | {datetime.timedelta(seconds=round(left))} left"
            )

    def evaluation(
        self, at: dict, metrics: dict, levels: dict[str, float], samples: list[tuple[str, str, str]]
    ) -> None:
        """Record an evaluation and print it with the levels to compare it to and a few (prompt, target, output)."""
        if not self.dir:
            return
        self.append("metrics.jsonl", json.dumps(dict(kind="eval", step=at["step"], **metrics)) + "\n")
        scores = {k: v for k, v in metrics.items() if isinstance(v, float) and k not in ("loss", "token_accuracy")}
        self.print(
            f"eval {at['step']} | loss {metrics['loss']:.4f} | tokens {metrics['tokens_right']}/{metrics['tokens']}"
            f" = {metrics['token_accuracy']:.4f}" + "".join(f" | {k} {v:.4f}" for k, v in scores.items())
            + (f" | levels: {', '.join(f'{k} {v:.4f}' for k, v in levels.items())}" if levels else "")
            + (f" | gate {metrics['gate']}" if "gate" in metrics else "")
        )  # fmt: skip
        for prompt, target, output in samples:
            mark = "right" if target == output else "wrong"
            self.print(f"    prompt ...{prompt[-90:]!r}\n    target {target!r}\n    output {output!r} {mark}")

    def rewind(self, step: int) -> None:
        """Drop the rows that a run resumed at `step` will write again."""
        path = self.dir / "metrics.jsonl" if self.dir else None
        if path and path.exists():
            kept = [
                r for r in read_metrics(self.dir) if r["step"] < step or (r["step"] == step and r["kind"] == "train")
            ]
            with replacing(path) as tmp:
                tmp.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


def read_metrics(run_dir: Path) -> list[dict]:
    """The rows of metrics.jsonl; a last line that a killed run left half written is dropped."""
    rows = []
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def comparison(off: dict, on: dict, metric: str, levels: dict[str, float]) -> str:
    """The paired table of two arms that took the same steps on the same batches: `metric` first, controls last."""
    names = [k for k, v in on.items() if isinstance(v, float)]
    names.sort(key=lambda k: k != metric)
    lines = [f"{'':24}{'off':>10}{'on':>10}{'on - off':>11}"]
    lines += [f"{k:24}{off[k]:10.4f}{on[k]:10.4f}{on[k] - off[k]:+11.4f}" for k in names]
    key = metric if metric in on else "token_accuracy"
    lines += [f"{key}, {k}: {v:.4f}" for k, v in levels.items()]
    for control, result in on.get("controls", {}).items():
        lines.append(f"{key} of the trained 'on' arm with {control}: {result[key]:.4f}")
    return "\n" + "\n".join(lines) + "\n"


def peak_memory_gib() -> float:
    """Peak memory of this process so far, GiB: of the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def plot_curves(path: Path, runs: dict[str, Path], metric: str, levels: dict[str, float], title: str) -> None:
    """curve.png: training loss and validation metric against steps, one line a run, horizontal lines for `levels`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    colors = ["#0072B2", "#D55E00", "#009E73"]  # Okabe-Ito: distinct for colour-blind readers
    for (label, run_dir), color in zip(runs.items(), colors, strict=False):
        rows = read_metrics(run_dir)
        train, val = [r for r in rows if r["kind"] == "train"], [r for r in rows if r["kind"] == "eval"]
        left.plot([r["step"] for r in train], [r["loss"] for r in train], color=color, label=label, lw=1.2)
        right.plot([r["step"] for r in val], [r[metric] for r in val], color=color, label=label, marker="o", ms=3)
    names = {v: ", ".join(k for k in levels if levels[k] == v) for v in levels.values()}  # equal ones share a line
    for (value, name), style in zip(names.items(), ["--", ":", "-."], strict=False):
        right.axhline(value, color="grey", ls=style, lw=1)
        right.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="grey")
    left.set(xlabel="step", ylabel="training loss (nats/token)", title=title)
    right.set(xlabel="step", ylabel=f"validation {metric}", ylim=(-0.02, 1.02))
    right.legend(frameon=False)
    with replacing(path) as tmp:
        fig.savefig(tmp, dpi=120, format="png")
    plt.close(fig)
