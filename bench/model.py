"""The whole model: prefill, decoding and a training step, beside what one would use instead, each in its own process.

    python bench/model.py                              # this repository only, under a minute
    python bench/model.py --peers                      # also pip rwkv, llama.cpp, and the torch form for training
    python bench/model.py --full --json=model.json     # more rounds, linear cost, profile; below ten minutes
    python bench/model.py --model=FILE.pth             # real weights instead of random ones of the 0.1B's sizes
    python bench/model.py --compare before.json after.json

A round asks every process once, in turn; figures are medians over rounds, ratios (time relative to this repository's at
the same precision: above 1 is slower) are taken within a round first. Memory is the process's peak, loading included.
Random weights and their GGUF forms are kept in the user's cache directory (2 GB for the 0.1B).
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

# before this file's own directory, where "model" would be this script
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import measuring
from bench.workers import Failed, Worker, weights
from common import run
from common.errors import UserError
from common.files import replacing
from wkv_cuda import describe

OURS = [("ours", "fp32"), ("ours", "bf16"), ("decoder", "fp32"), ("decoder", "bf16"), ("decoder", "int8")]
PEERS = [("rwkv", "fp32"), ("rwkv", "bf16"), ("llama.cpp", "fp32"), ("llama.cpp", "bf16"), ("llama.cpp", "int8")]
NAMES = {"ours": "model.py", "decoder": "wkv_cuda/decode.py", "training": "this repository"}
OPERATORS = {"torch": "all torch, WKV7 in chunks", "compiled": "the same, WKV7 compiled",
             "reference": "all torch, WKV7 in a loop", "fla": "WKV7 of fla"}  # fmt: skip


class Bench:
    """The record in the making: rows, versions, and what is missing and why."""

    def __init__(self, args, pth: Path, gguf: Path, vocab_size: int):
        self.args, self.rows, self.profile, self.versions, self.missing = args, [], [], {}, {}
        self.job = dict(pth=str(pth), gguf=str(gguf), vocab_size=vocab_size, threads=args.threads, tokens=args.tokens,
                        rows=args.rows, answers=args.answers)  # fmt: skip

    def start(self, *keys: tuple[str, str], **more) -> dict[tuple, Worker]:
        """Workers that have loaded their model, by (engine, precision); those that can't are put into `missing`."""
        workers = {(e, p): Worker(self.job | dict(engine=e, precision=p) | more) for e, p in keys}
        for key, worker in list(workers.items()):
            try:
                version = worker.answer()["version"]
            except Failed as e:
                self.fail(*key, e)
                workers.pop(key).close()
                continue
            if key in PEERS:
                self.versions[key[0]] = version
        return workers

    def fail(self, engine: str, what: str, reason) -> None:
        if (engine, what) in (*OURS[:2], ("training", "fp32"), ("training", "bf16")):
            raise UserError(f"{NAMES[engine]} {what} can't be measured: {reason}")
        self.missing[f"{NAMES.get(engine, engine)} {what}"] = str(reason)

    def rounds(self, workers: dict, n: int, warm: int, **task) -> dict[tuple, dict]:
        """Ask everyone n times in turn after `warm` calls -> seconds a round, peak memory; the dead drop out."""
        print(f"{task['do']}: {', '.join(' '.join(key) for key in workers)}", file=sys.stderr)
        found = {key: dict(seconds=[], rss_gib=None) for key in workers}
        for i in range(warm + n):
            for key in list(workers):
                try:
                    values = workers[key].ask(**(task | dict(steps=5) if i < warm else task))
                except Failed as e:
                    self.fail(*key, e)
                    workers.pop(key).close()
                    found.pop(key)
                    continue
                found[key]["rss_gib"] = values["rss_gib"]
                if i >= warm:
                    found[key]["seconds"].append(values["seconds"])
        return found

    def add(self, task: str, precision: str, name: str, tokens: int, found: dict, reference: list | None, error=None):
        times = found["seconds"]
        middle = statistics.median(times)
        self.rows.append(dict(
            key=[task, precision, name], seconds={"": times}, ms=1e3 * middle, tokens_per_second=tokens / middle,
            ratio=reference and measuring.ratio(times, reference), rss_gib=found["rss_gib"], error=error,
        ))  # fmt: skip

    def inference(self) -> None:
        """Prefill and decoding: everyone's process lives throughout; decoding first, its peak memory is less."""
        args, V = self.args, self.job["vocab_size"]
        workers = self.start(*(key for key in OURS + (PEERS if args.peers else []) if key[1] in args.precision))
        errors = self.errors(workers)
        n, few = args.rounds, min(16, args.tokens)
        decode = self.rounds(workers, n, 1, do="decode", tokens=few, steps=args.steps, vocab_size=V)
        readers = {key: w for key, w in workers.items() if key[0] != "decoder"}
        prefill = self.rounds(readers, n, 2, do="prefill", tokens=args.tokens, vocab_size=V)
        for worker in {**workers, **readers}.values():
            worker.close()
        for task, tokens, found in (("decode", 1, decode), (f"prefill of {args.tokens}", args.tokens, prefill)):
            for engine, precision in found:
                best = next((k for k in (("decoder", precision), ("ours", precision)) if k in found), None)
                name = "llama.cpp q8_0" if (engine, precision) == ("llama.cpp", "int8") else NAMES.get(engine, engine)
                reference = found[best]["seconds"] if best else None
                self.add(task, precision, name, tokens, found[engine, precision], reference, errors[engine, precision])

    def errors(self, workers: dict) -> dict[tuple, float]:
        """Largest difference of logits from model.py's in fp32, relative to the largest: that all run one model."""
        logits = {}
        with tempfile.TemporaryDirectory() as tmp:
            for key in list(workers):
                path = f"{tmp}/{'-'.join(key)}.npy"
                task = dict(do="logits", tokens=min(64, self.args.tokens), vocab_size=self.job["vocab_size"], file=path)
                try:
                    workers[key].ask(**task)
                    logits[key] = np.load(path)
                except Failed as e:
                    self.fail(*key, e)
                    workers.pop(key).close()
        exact = logits["ours", "fp32"]
        return {key: float(np.abs(x - exact).max() / np.abs(exact).max()) for key, x in logits.items()}

    def training(self, others: list[str], **job) -> None:
        """The training step; other forms of the operator beside ours, two processes at a time to save memory.

        All of `others` (keys of OPERATORS) in the first precision asked for, the first of them in the next ones too.
        """
        args = self.args
        precisions = [p for p in args.precision if p != "int8"]
        task = f"training step, {args.rows} x {args.tokens}"
        for precision in precisions:
            ours = self.start(("training", precision), operator="", **job)
            everything, rows = dict(seconds=[], rss_gib=None), []
            for operator in (others if precision == precisions[0] else others[:1]) or [None]:
                pair = dict(ours)
                if operator:
                    other = self.start(("training", precision), operator=operator, **job)
                    pair |= {(e, f"{p}, {OPERATORS[operator]}"): w for (e, p), w in other.items()}
                found = self.rounds(pair, min(args.rounds, 2 if operator == "reference" else 3), 1, do="train")
                mine = found.pop(("training", precision))
                everything = dict(seconds=everything["seconds"] + mine["seconds"], rss_gib=mine["rss_gib"])
                for key, values in found.items():
                    rows.append((OPERATORS[operator], values, mine["seconds"]))
                    pair[key].close()
            worker = ours["training", precision]
            if args.profile:
                self.profile += [dict(precision=precision, **row) for row in worker.ask(do="profile")["table"]]
            worker.close()
            tokens = args.rows * args.tokens
            self.add(task, precision, NAMES["training"], tokens, everything, everything["seconds"])
            for name, values, reference in rows:
                self.add(task, precision, name, tokens, values, reference)

    def scaling(self) -> list[dict]:
        """Time against the number of tokens, on a few layers so that it stays short, and against layers."""
        args, rows = self.args, []
        few = min(3, args.layers)
        lengths = [1024 * 2**i for i in range(7) if 1024 * 2**i <= args.longest] or [args.longest]
        for layers, todo in [(few, lengths)] + [(n, lengths[:1]) for n in (2 * few, 4 * few) if n <= args.layers]:
            (worker,) = self.start(("ours", "fp32"), layers=layers).values()
            for T in todo:
                print(f"reading {T} tokens, {layers} layers", file=sys.stderr)
                task = dict(do="decode", tokens=T, steps=args.steps, vocab_size=self.job["vocab_size"])
                found = [worker.ask(**task) for _ in range(1 if T > 4096 else 3)]
                rows.append(dict(tokens=T, layers=layers, seconds=min(x["prefill_seconds"] for x in found),
                                 decode_seconds=statistics.median(x["seconds"] for x in found),
                                 rss_gib=found[-1]["rss_gib"]))  # fmt: skip
            worker.close()
        return rows


def plot(path: str, rows: list[dict], title: str) -> None:
    """Seconds to read T tokens and milliseconds to decode one more, against T, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if r["layers"] == rows[0]["layers"]]
    T = [r["tokens"] for r in rows]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    axes[0].loglog(T, [r["seconds"] for r in rows], marker="o", color="#0072B2", label="measured")
    axes[0].loglog(T, [rows[0]["seconds"] * t / T[0] for t in T], ls=":", color="grey", label="proportional to T")
    axes[1].loglog(T, [1e3 * r["decode_seconds"] for r in rows], marker="o", color="#0072B2")
    axes[0].set(xlabel="tokens T", ylabel="seconds to read them", title=title)
    axes[1].set(xlabel="tokens read before", ylabel="ms to decode one more", ylim=(0.1, 1e3))
    axes[0].minorticks_off()
    axes[0].legend(frameon=False)
    with replacing(path) as tmp:
        fig.savefig(tmp, dpi=120, format="png")
    plt.close(fig)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = dict(layers=12, width=768, vocab=65536, tokens=0, rows=0, answers=64, steps=50, rounds=0, longest=65536)
    for name, default in (numbers | dict(threads=torch.get_num_threads())).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, what in (
        ("peers", "also those that are installed"),
        ("scaling", "time against tokens and layers"),
        ("profile", "where a training step's time goes"),
        ("full", "all of these, more rounds, more forms for training"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=what)
    for name, metavar in (("model", "PTH"), ("json", "FILE"), ("plot", "PNG")):
        parser.add_argument(f"--{name}", default="", metavar=metavar)
    parts = ["inference", "training", "scaling"]
    parser.add_argument("--only", nargs="+", choices=parts, help="default: inference and training")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16", "int8"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two records of one machine")
    args = parser.parse_args()
    args.peers |= args.full
    args.profile |= args.full
    args.only = args.only or (parts if args.full or args.scaling or args.plot else parts[:2])
    args.rounds = args.rounds or (5 if args.full else 2)
    rows, tokens = (8, 1024) if args.device == "cuda" else (2, 512)
    args.rows, args.tokens = args.rows or rows, args.tokens or tokens
    return args


def main():
    args = parse()
    if args.compare:
        return print(measuring.text(*measuring.compare(*args.compare)))
    if args.device == "cuda" and not torch.cuda.is_available():
        return print("not measured: no CUDA device")
    torch.set_num_threads(args.threads)
    pth, gguf, sizes = weights(args)
    bench = Bench(args, pth, gguf, sizes["vocab_size"])
    peaks, scaling = measuring.peaks(args.device), []
    if args.device == "cuda":
        args.precision, args.only = ["bf16"], []
        bench.training(["torch", "fla"], device="cuda")
    elif args.peers:
        bench.missing["fla"] = "its RWKV-7 is Triton code, for CUDA only"
    if "inference" in args.only:
        bench.inference()
    if "training" in args.only:
        bench.training(["torch"] * args.peers + ["compiled", "reference"] * args.full)
    if "scaling" in args.only:
        scaling = bench.scaling()
    record = measuring.record(
        "model", sizes=sizes | {"random": not args.model}, wkv=describe(args.device), versions=bench.versions,
        peaks=peaks, rows=bench.rows, scaling=scaling, profile=bench.profile, missing=bench.missing,
    )  # fmt: skip
    measuring.show(record)
    if args.plot:
        plot(args.plot, scaling, f"{scaling[0]['layers']} layers, width {sizes['n_embd']}, fp32")
    if args.json:
        run.write_json(args.json, record)


if __name__ == "__main__":
    run.cli(main)
