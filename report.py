"""Tables out of records, and the check that README.md and LOG.md still say what the records say.

    python report.py results/quickstart.jsonl                             # the table of a record
    python report.py --collect results/quickstart.jsonl out/quickstart-*  # make such a file out of finished runs
    python report.py --check README.md LOG.md                             # non-zero exit if a table has drifted

A table in a document stands between `<!-- report results/x.jsonl -->` and `<!-- end -->`. A record is a file of
compare.json lines, one a seed (configuration, versions, validation hash, last evaluation of both arms), the
metrics.jsonl of a run, or what a script in bench/ wrote with --json.
"""

import itertools
import json
import math
import re
import sys
from pathlib import Path

from bench import measuring
from common import run
from common.errors import UserError

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (any statistics handbook)
T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
        2.042]  # fmt: skip
MUST_AGREE = ("val_hash", "base_sha256", "commit", "torch")  # besides the configuration, but for the seed


def mean_sd(x: list[float]) -> tuple[float, float]:
    mean = sum(x) / len(x)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1)) if len(x) > 1 else math.nan


def read(path: str | Path) -> list[dict]:
    """The records of a comparison; UserError unless they differ in nothing but the seed."""
    try:
        records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as e:
        raise UserError(f"record {path} does not exist") from e
    if not records:
        raise UserError(f"{path} holds no record")
    free = ("seed", "out_dir", "resume")
    common = [{k: v for k, v in r["config"].items() if k not in free} | {k: r[k] for k in MUST_AGREE} for r in records]
    for other in common[1:]:
        if different := [k for k in other if other[k] != common[0].get(k)]:
            raise UserError(f"{path}: the runs differ in {different[0]}, they can't be in one table")
    seeds = [r["config"]["seed"] for r in records]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seed {max(seeds, key=seeds.count)} stands in it twice")
    return records


def markdown(head: list[str], rows: list[tuple]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def comparison_table(path: str | Path) -> str:
    """Off, on, paired difference with its 95 % t-interval, levels, controls (all of the task's metric), and cost."""
    records = read(path)
    metric, n, c = records[0]["metric"], len(records), records[0]["config"]
    off, on = ([r[arm][metric] for r in records] for arm in ("off", "on"))
    mean, sd = mean_sd([b - a for a, b in zip(off, on, strict=True)])
    half = T975[n - 2] * sd / math.sqrt(n) if 1 < n <= len(T975) + 1 else math.nan
    ups = sum(b > a for a, b in zip(off, on, strict=True))
    rows = [
        ("Future-Seed off", "{:.4f} ± {:.4f}".format(*mean_sd(off))),
        ("**Future-Seed on**", "**{:.4f} ± {:.4f}**".format(*mean_sd(on))),
        ("difference, paired", f"{mean:+.4f} ± {sd:.4f}"),
        ("its 95 % t-interval; runs that went up", f"{mean - half:+.4f} to {mean + half:+.4f}; {ups} of {n}"),
        *((f"level: {k}", f"{v:.4f}") for k, v in records[0]["levels"].items()),
    ]
    for control in records[0]["on"].get("controls", {}):
        values = [r["on"]["controls"][control][metric] for r in records]
        rows.append((f"control: the 'on' weights with {control}", "{:.4f} ± {:.4f}".format(*mean_sd(values))))
    cost = [r["on"]["training_seconds"] / r["off"]["training_seconds"] for r in records]
    rows.append(("training time, on / off", "{:.2f} ± {:.2f}".format(*mean_sd(cost))))
    head = f"{metric}, {n} seeds, {c['max_steps']} steps, {c['n_val']} validation examples"
    return markdown([head, "mean ± sd"], rows)


def run_table(path: str | Path) -> str:
    """What one run's metrics.jsonl says of its course and its cost."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    steps = [r for r in rows if r["kind"] == "train"]
    seconds = sorted(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(steps))
    evals = [r for r in rows if r["kind"] == "eval"]
    return markdown(
        ["steps", "training loss", "validation loss", "seconds a step (median)", "tokens a second", "peak memory"],
        [(str(len(steps)), f"{steps[0]['loss']:.2f} to {steps[-1]['loss']:.2f}",
          f"{evals[0]['loss']:.2f} to {evals[-1]['loss']:.2f}", f"{seconds[len(seconds) // 2]:.2f}",
          f"{steps[-1]['tokens'] / steps[-1]['seconds']:.0f}", f"{steps[-1]['memory_gib']:.1f} GiB")],
    )  # fmt: skip


def bench_table(path: str | Path) -> str:
    """What a script of bench/ wrote with --json: the machine in a line, its peaks, then the tables."""
    record = run.read_json(path)
    if "bench" not in record:
        raise UserError(f"{path} was not written by this version's bench/: measure again")
    lines = [f"{measuring.described(record)}; {measuring.peaks_line(record['peaks'])}."]
    return "\n\n".join([*lines, *(markdown(head, rows) for head, rows in measuring.tables(record))])


def table(path: str | Path) -> str:
    """The markdown table of a record, by what the file holds."""
    if Path(path).suffix == ".json":
        return bench_table(path)
    try:
        kind = json.loads(Path(path).read_text(encoding="utf-8").split("\n", 1)[0]).get("kind")
    except FileNotFoundError as e:
        raise UserError(f"record {path} does not exist") from e
    return run_table(path) if kind else comparison_table(path)


def collect(target: str, run_dirs: list[str]) -> None:
    """Write each directory's compare.json as one line of `target`, in order of seed; nothing if they don't agree."""
    records = sorted((run.read_json(Path(d) / "compare.json") for d in run_dirs), key=lambda r: r["config"]["seed"])
    with run.replacing(target) as tmp:
        tmp.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        table(tmp)


def check(documents: list[str]) -> int:
    """Compare each marked table with its record -> number of those that differ."""
    wrong = 0
    for document in documents:
        text = Path(document).read_text(encoding="utf-8")
        for path, body in re.findall(r"<!-- report (\S+) -->\n(.*?)\n<!-- end -->", text, flags=re.DOTALL):
            if body.strip() != (expected := table(Path(document).parent / path)):
                print(f"{document}: the table of {path} is not what its record says; it should be\n{expected}")
                wrong += 1
    return wrong


def main():
    args = sys.argv[1:]
    if args[:1] == ["--check"]:
        sys.exit(1 if check(args[1:]) else 0)
    if args[:1] == ["--collect"] and len(args) > 2:
        return collect(args[1], args[2:])
    if not args or args[0].startswith("-"):
        print(__doc__.strip())
        sys.exit(0 if args in (["-h"], ["--help"]) else 1)
    for path in args:
        print(table(path))


if __name__ == "__main__":
    run.cli(main)
