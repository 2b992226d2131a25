"""Processes of engines.py and the weights they run on; model.py asks, these answer."""

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from common.checkpoint import infer_sizes, read_tensors
from common.files import cache_dir

BENCH = Path(__file__).resolve().parent


class Failed(Exception):
    """Why an implementation could not be measured."""


class Worker:
    """A process of engines.py."""

    def __init__(self, job: dict):
        env = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
        if job.get("operator") in ("torch", "compiled", "reference"):
            env["WKV_BACKEND"] = job["operator"].replace("compiled", "torch")
        command = [sys.executable, str(BENCH / "engines.py"), json.dumps(job)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env
        )  # llama.cpp tells its stderr a great deal; what went wrong comes as an answer

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise Failed(f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")
        values = json.loads(line)
        if "failed" in values:
            raise Failed(values["failed"])
        return values

    def ask(self, **task) -> dict:
        with contextlib.suppress(BrokenPipeError):  # if it has died, answer() says of what
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def weights(args) -> tuple[Path, Path, dict]:
    """The .pth, the directory of its GGUF files and its sizes; makes what is not there yet, in a process of its own."""
    script, base = str(BENCH / "weights.py"), cache_dir() / "bench"
    if args.model:
        pth = Path(args.model).resolve()
        identity = f"{pth} {pth.stat().st_size} {pth.stat().st_mtime}" if pth.exists() else ""
        gguf = base / f"{pth.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    else:
        gguf = base / f"random-L{args.layers}-D{args.width}-V{args.vocab}"
        pth = gguf / "model.pth"
        if not pth.exists():
            print(f"making random weights in {gguf}", file=sys.stderr)
            sizes = map(str, (args.layers, args.width, args.vocab))
            subprocess.run([sys.executable, script, "random", *sizes, str(pth)], check=True)
    sizes = infer_sizes(pth, read_tensors(pth))
    args.layers = sizes["n_layer"]
    if args.peers and importlib.util.find_spec("llama_cpp") and not (gguf / "q8_0.gguf").exists():
        print(f"converting {pth} for llama.cpp", file=sys.stderr)
        done = subprocess.run([sys.executable, script, "gguf", str(pth), str(gguf)], capture_output=True, text=True)
        if done.returncode:
            print(f"no GGUF: {(done.stderr.strip() or '?').splitlines()[-1]}", file=sys.stderr)
    return pth, gguf, sizes
