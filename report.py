"""Tables and figures out of records, and the check that the documents still say what the records say.

    python report.py out/search_protein_ss/records.jsonl                  # a search and its confirmation
    python report.py results/a.jsonl results/b.jsonl                      # a row each, Holm's correction over all
    python report.py --plot=results/a.png results/a.jsonl                 # pairs, gates and curves, .png or .svg
    python report.py --collect results/quickstart.jsonl out/quickstart-*  # one file out of compare=True runs
    python report.py --check README.md LOG.md bench/README.md             # non-zero exit if a document has drifted

A table in a document stands between `<!-- report results/x.jsonl -->` (one record or several) and `<!-- end -->`, a
number between `<!-- number results/x.jsonl pp -->` and `<!-- end -->`. A record is a file of compare.json lines (one a
seed), what search.py wrote, the published figures, a run's metrics.jsonl, or what a script in bench/ wrote with
--json. What train_diffusion.py compared has a table of its own, several files in one if they are named together, and so
have runs of train_latent.py, all in one file.
results/manifest.json, beside the first document, names every record and the documents that cite it.
"""

import itertools
import json
import re
import sys
from pathlib import Path

from bench import measuring
from common import diffusion_tables, latent_tables, records, run
from common.errors import UserError
from common.tables import (
    BLUE,
    ENVIRONMENT,
    ORANGE,
    Comparison,
    agree,
    compare_table,
    comparison,
    figure,
    is_published,
    is_search,
    markdown,
    published_table,
    search_tables,
    summary_table,
)

MARK = re.compile(r"<!-- (report|number) ([^>]+?) -->(.*?)<!-- end -->", flags=re.DOTALL)


# --- tables
def run_table(path: str | Path) -> str:
    """What one run's metrics.jsonl says of its course and its cost."""
    rows = records.read_lines(path)
    steps, evals = ([r for r in rows if r["kind"] == kind] for kind in ("train", "eval"))
    if len(steps) < 2 or not evals:
        raise UserError(f"{path}: the table of a run takes at least two training steps and an evaluation, let it go on")
    seconds = sorted(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(steps))
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
        raise UserError(f"{path} holds no tables of today's bench/: measure again, or use --collect for a run")
    peaks = f"; {measuring.peaks_line(record['peaks'])}" if "peaks" in record else ""
    lines = [f"{measuring.described(record)}{peaks}."]
    return "\n\n".join([*lines, *(markdown(head, rows) for head, rows in measuring.tables(record))])


def table(paths: list[str | Path]) -> str:
    """The markdown of a record by what the file holds, or the summary of several comparisons."""
    if any(Path(p).suffix == ".jsonl" and diffusion_tables.is_diffusion(p) for p in paths):
        return diffusion_tables.table(paths)
    if len(paths) == 1 and Path(paths[0]).suffix == ".jsonl" and latent_tables.is_latent(paths[0]):
        return latent_tables.table(paths[0])
    if len(paths) > 1:
        return summary_table(paths)
    (path,) = paths
    records.require_file(path)
    if Path(path).suffix == ".json":
        return bench_table(path)
    if is_search(path):
        return search_tables(path)
    if is_published(path):
        return published_table(path)
    return run_table(path) if "kind" in records.read_lines(path)[0] else compare_table(path)


# --- figures
def dots(axes, c: Comparison) -> None:
    """A line from off to on for every seed; to the right, the mean difference and its interval on the same scale."""
    for a, b in zip(c.off, c.on, strict=True):
        axes.plot([0, 1], [a, b], color="grey", lw=0.8, zorder=1)
    axes.scatter([0] * len(c.off), c.off, color=BLUE, zorder=2)
    axes.scatter([1] * len(c.on), c.on, color=ORANGE, zorder=2)
    e, base = c.effect, sum(c.off) / len(c.off)
    if e.n > 1:
        axes.errorbar([1.8], [base + e.mean], [[e.mean - e.low], [e.high - e.mean]], color="black", fmt="o", capsize=4)
        axes.plot([0, 2.1], [base, base], color="grey", lw=0.8, ls=":")
    axes.set_xticks([0, 1, 1.8], ["no seed", "Future-Seed", "mean\ndifference"])
    axes.set(ylabel=c.metric, title=f"{c.name}: {c.word()}", xlim=(-0.3, 2.2))


def gate_lines(axes, c: Comparison) -> None:
    for gate in c.gates:
        axes.plot(range(len(gate)), gate, color=ORANGE, marker="o", ms=3, lw=0.8)
    axes.set(xlabel="layer", ylabel="effective gate at the end", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def curve_bands(axes, c: Comparison) -> None:
    """The metric over steps: mean of the seeds, and from the least to the greatest of them."""
    for curves, color, label in zip(c.curves, (BLUE, ORANGE), ("no seed", "Future-Seed"), strict=True):
        steps, values = [s for s, _ in curves[0]], [[v for _, v in curve] for curve in curves]
        columns = list(zip(*values, strict=True))
        axes.plot(steps, [sum(v) / len(v) for v in columns], color=color, label=label)
        axes.fill_between(steps, [min(v) for v in columns], [max(v) for v in columns], color=color, alpha=0.2, lw=0)
    axes.set(xlabel="step", ylabel=f"validation {c.metric}")
    axes.legend(frameon=False)


def save_figure(fig, target: str) -> None:
    form, known = Path(target).suffix[1:].lower() or "png", fig.canvas.get_supported_filetypes()
    if form not in known:
        raise UserError(f"{target}: there is no figure format {form!r}, use one of {', '.join(known)}")
    with run.replacing(target) as tmp:
        fig.savefig(tmp, dpi=120, format=form)


def plot(target: str, paths: list[str]) -> None:
    """One row of panels a comparison: its pairs, its gates by layer and, if the record has them, learning curves.

    Of records of train_diffusion.py a panel each: the score over the further validation sets; of one of train_latent.py
    a row a model.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if latent_tables.is_latent(paths[0]):
        return save_figure(latent_tables.figure(paths[0]), target)
    if diffusion_tables.is_diffusion(paths[0]):
        fig, axes = plt.subplots(1, len(paths), figsize=(6 * len(paths), 3.6), layout="constrained", squeeze=False)
        for panel, path in zip(axes[0], paths, strict=True):
            diffusion_tables.lines_of_sets(panel, path)
        return save_figure(fig, target)
    found = [comparison(p) for p in paths if not is_published(p)]
    fig, rows = plt.subplots(len(found), 3, figsize=(12, 3.4 * len(found)), layout="constrained", squeeze=False)
    for (left, middle, right), c in zip(rows, found, strict=True):
        dots(left, c)
        for axes, draw, there in ((middle, gate_lines, c.gates), (right, curve_bands, c.curves[0])):
            if there:
                draw(axes, c)
            else:
                axes.set_axis_off()
    save_figure(fig, target)


# --- records and documents
def collect(target: str, run_dirs: list[str]) -> None:
    """Write each directory's compare.json as one line of `target`, in order of seed; nothing if they don't agree.

    Runs of train_latent.py compare nothing, but have baselines in their result.json.
    """
    if all((Path(d) / "baselines.json").exists() for d in run_dirs):
        return latent_tables.collect(target, run_dirs)
    found = sorted((run.read_json(Path(d) / "compare.json") for d in run_dirs), key=lambda r: r["config"]["seed"])
    agree(target, found, ENVIRONMENT)
    with run.replacing(target) as tmp:
        tmp.write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")


def expected(kind: str, names: list[str], home: Path) -> str:
    """What should stand between a pair of markers."""
    if kind == "report":
        return table([home / n for n in names])
    if len(names) != 2:
        raise UserError(f"the marker of a number names a record and a number, this one: {' '.join(names)}")
    return figure(home / names[0], names[1])


def manifest_errors(home: Path, cited: dict[str, set[Path]]) -> list[str]:
    """Where results/manifest.json, the files in results/ and what the documents cite don't agree."""
    if not (home / "results" / "manifest.json").exists():
        return []
    listed, errors = run.read_json(home / "results" / "manifest.json"), []
    there = {p.name for s in ("*.json", "*.jsonl") for p in (home / "results").glob(s)} - {"manifest.json"}
    errors += [f"results/{n} is in no list: add it to results/manifest.json, or delete it" for n in there - set(listed)]
    errors += [f"results/manifest.json lists {n}, which does not exist" for n in set(listed) - there]
    for name, entry in listed.items():
        if not entry["cited"]:
            errors.append(f"results/{name}: results/manifest.json names no document that cites it")
        for document in cited:
            said, does = document in entry["cited"], (home / "results" / name).resolve() in cited[document]
            if said != does:
                errors.append(f"results/{name}: the manifest says {'' if said else 'not '}cited by {document}, it is"
                              f"{'' if does else ' not'}")  # fmt: skip
    return sorted(errors)


def check(documents: list[str]) -> int:
    """Regenerate every marked table and number -> how many differ, have no record, or are in no manifest."""
    errors, cited, home = [], {}, Path(documents[0]).resolve().parent
    for document in documents:
        records.require_file(document, "document", "a file in it")
        here = Path(document).resolve()
        name = here.relative_to(home).as_posix() if here.is_relative_to(home) else document
        cited[name] = set()
        for kind, what, body in MARK.findall(here.read_text(encoding="utf-8")):
            names = what.split()
            cited[name] |= {(here.parent / n).resolve() for n in (names if kind == "report" else names[:1])}
            try:
                if body.strip() != (right := expected(kind, names, Path(document).parent)):
                    errors.append(f"{document}: the {kind} of {what} is not as recorded; it should be\n{right}")
            except UserError as e:
                errors.append(f"{document}: {e}")
    errors += manifest_errors(home, cited)
    print("\n".join(errors) or f"{sum(map(len, cited.values()))} citations of records: all as recorded")
    return len(errors)


def main():
    args = sys.argv[1:]
    if args[:1] == ["--check"] and len(args) > 1:
        sys.exit(1 if check(args[1:]) else 0)
    if args[:1] == ["--collect"] and len(args) > 2:
        return collect(args[1], args[2:])
    if args and args[0].startswith("--plot=") and len(args) > 1:
        return plot(args[0].partition("=")[2], args[1:])
    if not args or args[0].startswith("-"):
        print(__doc__.strip())
        sys.exit(0 if args in (["-h"], ["--help"]) else 1)
    print(table(args))


if __name__ == "__main__":
    run.cli(main)
