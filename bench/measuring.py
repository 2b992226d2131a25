"""What the benchmarks share: the box, its peaks, interleaved rounds, ratios, records and their tables.

A figure is the median over rounds. In a round everything is measured once, one after the other, so that a machine that
slows down slows all of it; a ratio is taken within each round first, then its median. Ratios are never taken between
machines: `compare` refuses records whose boxes differ.
"""

import os
import platform
import statistics
import time

import torch

from common import run
from common.errors import UserError
from common.machine import processor_name

BOX = ("processor", "cores", "memory_gib", "system", "gpu", "threads")  # must agree for a ratio to mean anything
PAUSE = 0.01  # seconds; OpenMP threads of the one measured before spin that long, on cores that the next one needs


def box() -> dict:
    """What a machine is, as far as times depend on it; nothing that names this very one."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return dict(
        processor=processor_name(), cores=cores, memory_gib=round(memory / 2**30), system=platform.system(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None, threads=torch.get_num_threads(),
    )  # fmt: skip


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def rounds(todo: dict, n: int, limit: float = 60.0) -> dict[str, list[float]]:
    """Run each of `todo` (name -> function that returns seconds) once a round: `n` rounds, fewer after `limit` s."""
    times, start = {name: [] for name in todo}, time.perf_counter()
    for _ in range(n):
        for name, f in todo.items():
            time.sleep(PAUSE)
            times[name].append(f())
        if time.perf_counter() - start > limit:
            break
    return times


def ratio(times: list[float], reference: list[float]) -> float:
    """Median over rounds of the time relative to the reference's in the same round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def peaks(device: str = "cpu", n: int = 7) -> dict:
    """GFLOP/s of a matrix product in fp32 and bf16, and GB/s of a copy (read and written): the best of n tries.

    The best, because a peak is what the machine can do; medians are for what programs do with it.
    """
    size, length = (2048, 1 << 26) if device == "cpu" else (8192, 1 << 30)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        best = min(seconds(lambda a=a, out=out: (torch.mm(a, a, out=out), sync())) for _ in range(n))
        found[f"{name}_gflops"] = 2 * size**3 / best / 1e9
    source = torch.zeros(length, device=device)
    target = torch.ones_like(source)
    found["copy_gbs"] = 8 * length / min(seconds(lambda: (target.copy_(source), sync())) for _ in range(n)) / 1e9
    return found


# ---- records


def record(bench: str, **content) -> dict:
    return dict(bench=bench, box=box(), **run.environment(), **content)


def described(r: dict) -> str:
    """One line that says what a record was measured on."""
    b = r["box"]
    versions = "".join(f", {name} {version}" for name, version in r.get("versions", {}).items())
    where = b["gpu"] or f"{b['threads']} of {b['cores']} cores of {b['processor']}, {b['memory_gib']} GiB"
    return f"{where}, {b['system']}, torch {r['torch']}, wkv {r['wkv']}{versions}"


def peaks_line(p: dict) -> str:
    return (
        f"the machine's peak in this run: fp32 {p['fp32_gflops']:.0f} and bf16 {p['bf16_gflops']:.0f} GFLOP/s in a "
        f"matrix product, {p['copy_gbs']:.0f} GB/s in a copy"
    )


def compare(first: str, second: str) -> tuple[list[str], list[tuple]]:
    """Head and rows of the ratios second / first of what stands in both records.

    Raises UserError if they are not from one machine, or not of one benchmark.
    """
    a, b = run.read_json(first), run.read_json(second)
    if a["bench"] != b["bench"]:
        raise UserError(f"{first} is of bench/{a['bench']}.py, {second} of bench/{b['bench']}.py: nothing to compare")
    for key in BOX:
        if a["box"][key] != b["box"][key]:
            raise UserError(
                f"no ratio between machines: {key} is {a['box'][key]} in {first} and {b['box'][key]} in {second};"
                " measure both on one"
            )
    old, new = (
        {(*row["key"], what): t for row in r["rows"] for what, t in row["seconds"].items() if t} for r in (a, b)
    )
    rows = [
        (*map(str, key), f"{1e3 * statistics.median(old[key]):.2f}", f"{1e3 * statistics.median(new[key]):.2f}",
         f"{statistics.median(new[key]) / statistics.median(old[key]):.2f}")
        for key in old if key in new
    ]  # fmt: skip
    return ["of", "precision", "implementation", "what", "ms before", "ms after", "ratio"], rows


# ---- tables: each is (head, rows of texts), for the terminal and for report.py


def number(x: float | None, digits: int = 1) -> str:
    return "-" if x is None else f"{x:,.{digits}f}"


def tables(r: dict) -> list[tuple[list[str], list[tuple]]]:
    """The tables of a record."""
    if r["bench"] == "wkv":
        made = [operator_table(r["rows"])]
    elif r["bench"] == "loading":
        from bench import loading  # which imports this module

        made = loading.tables(r)
    else:
        made = [model_table(r["rows"]), scaling_table(r["scaling"]), profile_table(r["profile"])]
    return [t for t in made if t[1]]


def operator_table(rows: list[dict]):
    head = ["(B, T, H, N)", "", "implementation", "forward ms", "ratio", "GFLOP/s", "GB/s", "fwd + bwd ms", "ratio",
            "GFLOP/s", "GB/s", "of peak", "error of y", "of gradients"]  # fmt: skip
    out = []
    for row in rows:
        cells = []
        for what in ("forward", "both"):
            m = row["figures"].get(what)
            cells += [number(m and m["ms"], 2), number(m and m["ratio"]), number(m and m["gflops"], 0),
                      number(m and m["gbs"])]  # fmt: skip
        share = (row["figures"].get("both") or row["figures"]["forward"])["share"]
        errors = [f"{x:.0e}" if x is not None else "-" for x in (row["error_y"], row["error_gradients"])]
        out.append((*row["key"], *cells, f"{100 * share:.0f} %", *errors))
    return head, out


def model_table(rows: list[dict]):
    head = ["task", "precision", "implementation", "tokens/s", "ms", "ratio", "peak RSS, GiB", "error of logits"]
    out = []
    for row in rows:
        error = row.get("error")
        out.append((*row["key"], number(row["tokens_per_second"], 0 if row["tokens_per_second"] >= 1000 else 1),
                    number(row["ms"]), number(row["ratio"], 2), number(row["rss_gib"], 2),
                    "-" if error is None else f"{error:.0e}"))  # fmt: skip
    return head, out


def scaling_table(rows: list[dict]):
    head = ["tokens read", "layers", "s", "µs a token and layer", "then ms a decoded token", "peak RSS, GiB"]
    return head, [
        (str(r["tokens"]), str(r["layers"]), number(r["seconds"], 2),
         number(1e6 * r["seconds"] / r["tokens"] / r["layers"]), number(1e3 * r["decode_seconds"], 2),
         number(r["rss_gib"], 2)) for r in rows
    ]  # fmt: skip


def profile_table(rows: list[dict]):
    total = {r["precision"]: sum(x["ms"] for x in rows if x["precision"] == r["precision"]) for r in rows}
    head = ["training step", "of which", "ms", "share", "its largest operators, ms"]
    return head, [
        (r["precision"], r["part"], number(r["ms"], 0), f"{100 * r['ms'] / total[r['precision']]:.0f} %", r["largest"])
        for r in rows
    ]


def text(head: list[str], rows: list[tuple]) -> str:
    """A table for the terminal: words to the left, numbers to the right."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    numeric = [all(str(row[i])[:1] in "0123456789-" for row in rows) for i in range(len(head))]

    def line(row):
        cells = zip(row, widths, numeric, strict=True)
        return "  ".join(f"{x:>{w}}" if right else f"{x:<{w}}" for x, w, right in cells).rstrip()

    return "\n".join(map(line, [head, *rows]))


def show(r: dict) -> None:
    """Print a record: what it was measured on, its tables, what is missing."""
    print(described(r))
    print(peaks_line(r["peaks"]), end="\n\n")
    for table in tables(r):
        print(text(*table), end="\n\n")
    for name, reason in r.get("missing", {}).items():
        print(f"{name}: not measured: {reason}")
