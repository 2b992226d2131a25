"""Markdown tables out of records: of a comparison of two arms, of a search, of several of these, of published figures.

Scores are shares of 1, differences percentage points (pp), intervals 95 % t-intervals of the mean paired difference.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from common import records
from common.errors import UserError
from common.statistics import MARGIN, RULES, Paired, holm, mean_sd, paired, verdict

ENVIRONMENT = ("val_hash", "base_sha256", "commit", "torch")  # must agree between the seeds of a comparison
SUBSTITUTES = ("no seed", "another row's seed", "a random seed")  # evaluated with the trained seeded weights
START, TWICE, ZERO = "trained start state", "read twice", "gate forced to zero"
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe-Ito: distinct for colour-blind readers
FIRST, FIRST_OFF = "instruction first", "instruction first, no seed"


def markdown(head: list[str], rows: list[tuple]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def plus_minus(x: list[float], digits: int = 4) -> str:
    mean, sd = mean_sd(x)
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(x) > 1 else "")


def p_text(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def effect_cells(e: Paired) -> tuple[str, ...]:
    """mean ± sd, interval, ups and downs, p of the t-test, p of sign flips: of a paired difference, in pp."""
    if e.n < 2:
        return f"{100 * e.mean:+.2f}", "-", f"{e.ups}, {e.downs}", "-", "-"
    return (f"{100 * e.mean:+.2f} ± {100 * e.sd:.2f}", f"{100 * e.low:+.2f} to {100 * e.high:+.2f}",
            f"{e.ups}, {e.downs}", p_text(e.p), p_text(e.flips))  # fmt: skip


EFFECT_HEAD = ["difference, pp", "95 % interval", "up, down", "p (t)", "p (flips)"]


@dataclass
class Comparison:
    """Two arms over the same seeds, however they were recorded. Lists are in order of seed, scores the task's metric.

    controls: scores of runs, or of evaluations of the seeded weights, that stand in for the seed, by name.
    first: scores (no seed, seeded) with the instruction first. zero: whether a closed gate gives the baseline bit for
    bit. k: candidates that the seeded arm was chosen from, on data not its own if `fresh`. cost: (seconds on / off),
    memory_gib: (off, on), by seed.
    """

    name: str
    metric: str
    config: dict
    levels: dict[str, float]
    off: list[float]
    on: list[float]
    cost: list[float]
    seeded_as: str = "Future-Seed"
    controls: dict[str, list[float]] = field(default_factory=dict)
    first: tuple[list[float], list[float]] | None = None
    costs: dict[str, list[float]] = field(default_factory=dict)
    memory_gib: list[tuple[float, float]] = field(default_factory=list)
    gates: list[list[float]] = field(default_factory=list)
    curves: tuple[list, list] = ((), ())
    zero: bool | None = None
    failed: list[str] = field(default_factory=list)
    k: int = 1
    fresh: bool = True

    @property
    def effect(self) -> Paired:
        return paired(self.off, self.on)

    def corrected(self) -> float:
        """p of the t-test; if the choice among k used the same rows or seeds, corrected for k."""
        return self.effect.p if self.fresh else holm([self.effect.p], self.k)[0]

    def word(self, p: float | None = None) -> str:
        against = {n: paired(c, self.on) for n, c in self.controls.items() if n != TWICE}  # twice is another bargain
        return verdict(self.effect, self.corrected() if p is None else p, against)


def agree(path, rows: list[dict], keys: tuple[str, ...], free: tuple[str, ...] = ()) -> None:
    """UserError unless the runs of an arm differ in nothing but the seed."""
    common = [{k: v for k, v in r["config"].items() if k not in ("seed", "out_dir", "resume", *free)}
              | {k: r[k] for k in keys} for r in rows]  # fmt: skip
    for other in common[1:]:
        if different := [k for k in other if other[k] != common[0].get(k)]:
            raise UserError(f"{path}: the runs differ in {different[0]}, they can't be in one table")
    seeds = [r["config"]["seed"] for r in rows]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seed {max(seeds, key=seeds.count)} stands in it twice")


def from_compare(path: str | Path) -> Comparison:
    """Out of compare.json lines, one a seed, each with both arms."""
    rows = records.read_lines(path)
    if any("on" not in r or "off" not in r for r in rows):
        raise UserError(f"{path} is not made of compare.json lines: was it put together by report.py --collect?")
    agree(path, rows, ENVIRONMENT)
    rows.sort(key=lambda r: r["config"]["seed"])
    metric = rows[0]["metric"]
    on = [r["on"] for r in rows]
    start = {START: [r["start"][metric] for r in rows]} if "start" in rows[0] else {}
    return Comparison(
        name=Path(path).stem, metric=metric, config=rows[0]["config"], levels=rows[0]["levels"],
        off=[r["off"][metric] for r in rows], on=[r[metric] for r in on],
        cost=[r["on"]["training_seconds"] / r["off"]["training_seconds"] for r in rows],
        controls={c: [r["controls"][c][metric] for r in on] for c in on[0].get("controls", {})} | start,
        gates=[[0.0] * r["config"]["fs_layer_start"] + r["on"]["gate"] for r in rows if "gate" in r["on"]],
    )  # fmt: skip


def stages(path: str | Path) -> dict[str, list[dict]]:
    """The runs of a search by stage, in order; of a run that was repeated, the last."""
    latest = {r["key"]: r for r in records.read_lines(path)}
    return {s: [r for r in latest.values() if r["stage"] == s] for s in ("probe", "quick", "medium", "confirm")}


def arms_of(path: str | Path, confirm: list[dict]) -> dict[str, dict[int, dict]]:
    """{candidate: {seed: its run}} of a confirmation; UserError if an arm can't be compared with its baseline."""
    arms = {}
    for r in sorted((r for r in confirm if r["status"] == "ok"), key=lambda r: r["seed"]):
        arms.setdefault(r["candidate"], {})[r["seed"]] = r
    for name, runs in arms.items():
        agree(path, list(runs.values()), ("val_hash", "base_sha256", "code", "torch"))
        other = arms.get(FIRST_OFF if name in (FIRST, FIRST_OFF) else records.BASELINE, {})
        for seed in set(runs) & set(other):
            records.pair(other[seed], runs[seed])
    return arms


def from_search(path: str | Path) -> Comparison:
    """Out of the confirmation of a search; UserError if there is none, or if runs are not comparable."""
    by_stage = stages(path)
    arms = arms_of(path, by_stage["confirm"])
    known = (records.BASELINE, START, TWICE, ZERO, FIRST, FIRST_OFF)
    name = next((r["candidate"] for r in by_stage["confirm"] if r["candidate"] not in known), None)
    base, seeded = arms.get(records.BASELINE, {}), arms.get(name, {})
    both = sorted(set(base) & set(seeded))
    if not both:
        raise UserError(f"{path}: no seed has both a baseline and a seeded run in its confirmation yet")
    failed = [f"{r['candidate']}, seed {r['seed']}: {r['error']}" for r in by_stage["confirm"] if r["status"] != "ok"]
    one, home = base[both[0]], Path(path).resolve()
    out = Comparison(
        name=home.parent.name if home.stem == "records" else home.stem, seeded_as=name,
        metric=one["metric"], config=one["config"], levels=one["levels"], failed=failed,
        off=[records.score(base[s]) for s in both], on=[records.score(seeded[s]) for s in both],
        cost=[seconds(seeded[s]) / seconds(base[s]) for s in both],
        memory_gib=[(base[s]["memory_gib"], seeded[s]["memory_gib"]) for s in both],
        gates=[records.gates(seeded[s]) for s in both],
        curves=([base[s]["curve"] for s in both], [seeded[s]["curve"] for s in both]),
    )  # fmt: skip
    add_controls(out, arms, base, [seeded[s] for s in both], both)
    chose = [r for s in ("quick", "medium") for r in by_stage[s] if r["status"] == "ok"]
    out.k = max(1, records.tried(records.judge(by_stage["quick"], 0.0))) if by_stage["quick"] else 1
    out.fresh = not any(r["val_hash"] == one["val_hash"] or r["seed"] in both for r in chose)
    return out


def seconds(r: dict) -> float:
    return r["metrics"]["training_seconds"]


def add_controls(out: Comparison, arms: dict, base: dict, seeded: list[dict], seeds: list[int]) -> None:
    """Whatever controls a confirmation has, as far as they are there for all of its seeds."""
    for c in seeded[0]["metrics"].get("controls", {}):
        out.controls[c] = [r["metrics"]["controls"][c][out.metric] for r in seeded]
    for c in (START, TWICE):
        if set(runs := arms.get(c, {})) >= set(seeds):
            out.controls[c] = [records.score(runs[s]) for s in seeds]
            out.costs[c] = [seconds(runs[s]) / seconds(base[s]) for s in seeds]
    off, on = arms.get(FIRST_OFF, {}), arms.get(FIRST, {})
    if shared := sorted(set(off) & set(on)):
        out.first = tuple([records.score(arm[s]) for s in shared] for arm in (off, on))
    if zero := [(base[s], r) for s, r in arms.get(ZERO, {}).items() if s in base]:
        out.zero = all(records.identical(a, b) for a, b in zero)


def is_search(path: str | Path) -> bool:
    return records.read_lines(path)[0].get("kind") == "run"


def is_published(path: str | Path) -> bool:
    return records.read_lines(path)[0].get("kind") == "published"


def comparison(path: str | Path) -> Comparison:
    return from_search(path) if is_search(path) else from_compare(path)


def compare_table(path: str | Path) -> str:
    """Off, on, paired difference with its interval and tests, levels, controls (all of the task's metric), cost."""
    c = from_compare(path)
    e, n = c.effect, len(c.on)
    rows = [
        ("Future-Seed off", "{:.4f} ± {:.4f}".format(*mean_sd(c.off))),
        ("**Future-Seed on**", "**{:.4f} ± {:.4f}**".format(*mean_sd(c.on))),
        ("difference, paired", f"{e.mean:+.4f} ± {e.sd:.4f}"),
        ("its 95 % t-interval; runs that went up", f"{e.low:+.4f} to {e.high:+.4f}; {e.ups} of {n}"),
        ("p: paired t-test; sign flips", f"{p_text(e.p)}; {p_text(e.flips)}"),
        ("verdict", f"**{c.word()}**"),
        *((f"level: {k}", f"{v:.4f}") for k, v in c.levels.items()),
    ]
    for control, values in c.controls.items():
        rows.append((f"control: the 'on' weights with {control}", "{:.4f} ± {:.4f}".format(*mean_sd(values))))
    rows.append(("training time, on / off", "{:.2f} ± {:.2f}".format(*mean_sd(c.cost))))
    head = f"{c.metric}, {n} seeds, {c.config['max_steps']} steps, {c.config['n_val']} validation examples"
    return f"{markdown([head, 'mean ± sd'], rows)}\n\n{RULES}"


def confirmation_table(c: Comparison) -> str:
    """The confirmation of a search: every arm and control against the baseline of the same seed."""
    n, blank = len(c.on), ("",) * len(EFFECT_HEAD)
    rows = [("no seed (baseline)", plus_minus(c.off), *blank, "1"),
            (f"**Future-Seed: {c.seeded_as}**", f"**{plus_minus(c.on)}**", *effect_cells(c.effect),
             plus_minus(c.cost, 2))]  # fmt: skip
    for name, scores in c.controls.items():
        label = f"control: its weights with {name}" if name in SUBSTITUTES else f"control: {name}"
        cost = plus_minus(c.costs[name], 2) if name in c.costs else ""
        rows.append((label, plus_minus(scores), *effect_cells(paired(c.off, scores)), cost))
    if c.first:
        rows.append((f"control: {FIRST}, no seed", plus_minus(c.first[0]), *blank, ""))
        rows.append((f"control: {FIRST}, Future-Seed (to the row above)", plus_minus(c.first[1]),
                     *effect_cells(paired(*c.first)), ""))  # fmt: skip
    rows += [(f"level: {k}", f"{v:.4f}", *blank, "") for k, v in c.levels.items()]
    head = f"{c.name}: {c.metric}, {n} seeds, {c.config['max_steps']} steps of {c.config['bsz']}"
    rows_used = "on other seeds and rows" if c.fresh else "**also on these seeds or rows**: p is corrected for k"
    lines = [f"Verdict: **{c.word()}** (p = {p_text(c.corrected())}; the best of k = {c.k}, chosen {rows_used})."]
    if c.zero is not None:
        lines.append(f"The gate forced to zero gives the baseline bit for bit: {'yes' if c.zero else '**NO**'}.")
    if c.memory_gib:
        lines.append(
            "Peak memory {:.2f} GiB without a seed, {:.2f} with.".format(
                *(max(m[i] for m in c.memory_gib) for i in (0, 1))
            )
        )
    lines += [f"Failed: {f}." for f in c.failed]
    return f"{markdown([head, 'score', *EFFECT_HEAD, 'time'], rows)}\n\n{' '.join(lines)}\n\n{RULES}"


def search_tables(path: str | Path) -> str:
    """The stages of a search with what became of each candidate, then its confirmation."""
    out, by_stage = [], stages(path)
    if by_stage["probe"]:
        fits = [(str(r["config"]["bsz"]) if r["status"] == "ok" else r["candidate"].split()[1], r["error"] or "fits")
                for r in by_stage["probe"]]  # fmt: skip
        out.append(markdown(["batch size", "probe"], fits))
    for stage in ("quick", "medium"):
        if not (runs := by_stage[stage]) or runs[0]["status"] != "ok":
            continue
        rows = [(records.BASELINE, f"{records.score(runs[0]):.4f}", "", "", f"{runs[0]['seconds']:.0f}", "")]
        for j in records.judge(runs, runs[0]["prune"]):
            r, ok = j["record"], j["pp"] is not None
            gate = ", ".join(f"{g:.3g}" for g in r["gate"]) if ok else ""
            word = "" if j["word"] == "kept" else j["word"]
            score = f"{records.score(r):.4f}" if ok else "-"
            rows.append((r["candidate"], score, f"{j['pp']:+.2f}" if ok else "-", gate, f"{r['seconds']:.0f}", word))
        head = f"{stage}: {runs[0]['metric']}, seed {runs[0]['seed']}, {runs[0]['steps']} steps"
        out.append(markdown([head, "score", "pp", "effective gate", "seconds", ""], rows))
    if by_stage["confirm"]:
        out.append(confirmation_table(from_search(path)))
    return "\n\n".join(out)


def summary_table(paths: list[str | Path]) -> str:
    """One row a comparison, Holm's correction over all of them; published figures beside ours if a file has them."""
    published = [r for p in paths if is_published(p) for r in records.read_lines(p)]
    all_ = [comparison(p) for p in paths if not is_published(p)]
    ps = holm([c.corrected() for c in all_])
    head = ["comparison", "n", "no seed", "Future-Seed", *EFFECT_HEAD, "p (Holm)", "verdict"]
    rows, beside = [], []
    for c, p in zip(all_, ps, strict=True):
        rows.append((f"{c.name}, {c.metric}", str(len(c.on)), plus_minus(c.off), plus_minus(c.on),
                     *effect_cells(c.effect), p_text(p), f"**{c.word(p)}**"))  # fmt: skip
        cells = [f"{mean_sd(c.controls[n])[0]:.4f}" if n in c.controls else "-" for n in (*SUBSTITUTES, START, TWICE)]
        cells.append(f"{100 * paired(*c.first).mean:+.2f}" if c.first else "-")
        cells += [plus_minus(c.cost, 2), f"{max(b for _, b in c.memory_gib):.1f}" if c.memory_gib else "-"]
        beside.append((c.name, *cells, *(published_cells(c, published) if published else ())))
    heads = ["controls and cost", *SUBSTITUTES, START, TWICE, f"pp, {FIRST}", "time", "GiB"]
    heads += ["published, longer with a seed, pp", "published, equal budgets, pp (pairs)"] if published else []
    return f"{markdown(head, rows)}\n\n{markdown(heads, beside)}\n\n{RULES}"


def published_cells(c: Comparison, published: list[dict]) -> tuple[str, str]:
    """Published differences for the task of a comparison: the largest at unequal budgets, all at equal ones."""
    mine = [r for r in published if r["task"] == c.config["task"]
            and r.get("side") in (None, c.config["task_args"].get("side"))]  # fmt: skip
    unequal = [r for r in mine if r["budget"] == "unequal"]
    best = max(unequal, key=lambda r: r["pp"], default=None)
    first = f"{best['pp']:+.2f} (round {best['round']})" if best else "-"
    equal = [r for r in mine if r["budget"] == "equal"]
    return first, ", ".join(f"{r['pp']:+.2f} ({r['pairs']})" for r in equal) or "-"


def published_table(path: str | Path) -> str:
    """Figures of the published campaign with the steps of each arm; 'med vs quick': longer training against shorter."""
    show = lambda x, form: "-" if x is None else form.format(x)
    rows = []
    for r in records.read_lines(path):
        budgets = "equal" if r["budget"] == "equal" else "**med vs quick**"
        e = paired([0.0] * len(r["seeds"]), [x / 100 for x in r["seeds"]]) if r["seeds"] else None
        rows.append((
            str(r["round"]), r["what"], str(r["pairs"]), show(r["steps_off"], "{}"), show(r["steps_on"], "{}"), budgets,
            show(r["off"], "{:.2f}"), show(r["on"], "{:.2f}"), f"{r['pp']:+.2f}", effect_cells(e)[1] if e else "-",
            r["positive"] or "-", r["note"],
        ))  # fmt: skip
    head = ["round", "published", "pairs", "steps off", "steps on", "budgets", "off %", "on %", "pp", EFFECT_HEAD[1],
            "positive", "note"]  # fmt: skip
    return markdown(head, rows)


def figure(path: str | Path, name: str) -> str:
    """One number of a comparison, as a text may quote it."""
    c = comparison(path)
    e = c.effect
    known = dict(
        n=str(e.n), off=f"{mean_sd(c.off)[0]:.4f}", on=f"{mean_sd(c.on)[0]:.4f}", pp=f"{100 * e.mean:+.2f}",
        sd=f"{100 * e.sd:.2f}", low=f"{100 * e.low:+.2f}", high=f"{100 * e.high:+.2f}", p=p_text(c.corrected()),
        verdict=c.word(), k=str(c.k), margin=f"{100 * MARGIN:g}",
    )  # fmt: skip
    if name not in known:
        raise UserError(f"{path}: there is no number {name!r}, use one of {', '.join(known)}")
    return known[name]
