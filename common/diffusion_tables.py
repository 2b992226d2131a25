"""Tables of train_diffusion.py's records beside the published figures: arms, decoders, other validation sets."""

from pathlib import Path

from common import records
from common.errors import UserError
from common.statistics import mean_sd, paired
from common.tables import BLUE, ENVIRONMENT, ORANGE, SUBSTITUTES, agree, effect_cells, markdown, plus_minus


def is_diffusion(path: str | Path) -> bool:
    arm = records.read_lines(path)[0].get("on")
    return isinstance(arm, dict) and "sets" in arm


def load(path: str | Path) -> list[dict]:
    """The runs of a file in order of seed; UserError if they differ in anything else."""
    rows = records.read_lines(path)
    agree(path, rows, ENVIRONMENT)
    return sorted(rows, key=lambda r: r["config"]["seed"])


def scores(rows: list[dict], arm: str) -> list[float]:
    return [r[arm][r["metric"]] for r in rows]


def cell(rows: list[dict], arm: str) -> str:
    return plus_minus(scores(rows, arm), 3) if arm in rows[0] else "-"


def arms_table(paths: list[str | Path], published: list[dict]) -> str:
    """One row a file: all arms and controls, the ceiling of a reader without a seed, and what was published."""
    head = ["task", "steps", "n", "causal ceiling", "off", "**on**", "on - off, pp", "trained start state",
            *(f"on, {s}" for s in SUBSTITUTES), "published off, on"]  # fmt: skip
    body = []
    for path in paths:
        rows = load(path)
        one, name, ceiling = rows[0], Path(path).stem, rows[0]["levels"].get("causal ceiling")
        controls = [[r["on"]["controls"][s][r["metric"]] for r in rows] for s in SUBSTITUTES]
        before = next((p for p in published if p["record"] == name), None)
        body.append((
            name.removeprefix("diffusion_"), str(one["config"]["max_steps"]), str(len(rows)),
            f"{ceiling:.3f}" if ceiling else "-", cell(rows, "off"), f"**{cell(rows, 'on')}**",
            effect_cells(paired(scores(rows, "off"), scores(rows, "on")))[0] if "off" in one else "-",
            cell(rows, "start"),
            *(f"{mean_sd(c)[0]:.3f}" for c in controls),
            f"{before['off']:.3f}, {before['on']:.3f}" if before else "-",
        ))  # fmt: skip
    return markdown(head, body)


def sets_table(path: str | Path) -> str:
    """One row a validation set and decoder: every metric of the arms off and on, means over the seeds."""
    rows = load(path)
    one = rows[0]["on"]["sets"]
    names = [k for k, v in next(iter(next(iter(one.values())).values())).items()
             if isinstance(v, float) and k not in ("loss", "token_accuracy")]  # fmt: skip
    arms = [a for a in ("off", "on") if a in rows[0]]
    body = []
    for s, by_decoder in one.items():
        for how in by_decoder:
            values = {a: [[r[a]["sets"][s][how][n] for r in rows] for n in names] for a in arms}
            body.append((s, how, *(plus_minus(v, 3) for a in arms for v in values[a])))
    return markdown(["validation rows", "decoder", *(f"{n}, {a}" for a in arms for n in names)], body)


def lines_of_sets(axes, path: str | Path) -> None:
    """The task's metric over the further validation sets, a line for each arm and decoder: mean, least to greatest."""
    rows = load(path)
    sets = {s: v for s, v in rows[0]["on"]["sets"].items() if s != "validation"}
    arms = [(arm, color) for arm, color in (("off", BLUE), ("on", ORANGE)) if arm in rows[0]]
    styles = zip(next(iter(sets.values())), ("-", "--", ":"), strict=False)
    for how, style in styles:
        for arm, color in arms:
            values = [[r[arm]["sets"][s][how][r["metric"]] for r in rows] for s in sets]
            axes.plot(range(len(sets)), [mean_sd(v)[0] for v in values], style, color=color, label=f"{arm}, {how}")
            axes.fill_between(range(len(sets)), [min(v) for v in values], [max(v) for v in values], color=color,
                              alpha=0.15, lw=0)  # fmt: skip
    axes.set_xticks(range(len(sets)), sets)
    steps = rows[0]["config"]["max_steps"]
    axes.set(ylabel=rows[0]["metric"], ylim=(-0.02, 1.02), title=f"{Path(path).stem}: n = {len(rows)}, {steps} steps")
    axes.legend(frameon=False)


def table(paths: list[str | Path]) -> str:
    """Several records: one row each (a file of published figures among them is set beside). One: its sets as well."""
    published = [r for p in paths for r in records.read_lines(p) if r.get("kind") == "published diffusion"]
    paths = [p for p in paths if is_diffusion(p)]
    if not paths:
        raise UserError("no record of train_diffusion.py is among these files")
    rows = arms_table(paths, published)
    return rows if len(paths) > 1 else f"{rows}\n\n{sets_table(paths[0])}"
