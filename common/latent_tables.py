"""Tables and a figure of train_latent.py's records: what each frozen model scores with each thing that it can read."""

import json
from pathlib import Path

from common import records, run
from common.errors import UserError
from common.tables import BLUE, ENVIRONMENT, ORANGE, markdown

CONDITIONS = {"token budget": "grey", "latent": ORANGE, "shuffled latent": BLUE}  # of each number of latents
SCORES = {"em": "EM", "f1": "F1", "nll": "NLL, nats/token", "first1": "first token", "first5": "in top 5"}
PREFIX = ("rms", "embedding_rms", "std", "between_rows", "scale")


def is_latent(path: str | Path) -> bool:
    return records.read_lines(path)[0].get("kind") == "latent"


def collect(target: str, run_dirs: list[str]) -> None:
    """Write each directory's result and its evaluations as one line of `target`, by reader and number of latents.

    UserError if they don't answer the same questions with the same models.
    """
    found = []
    for d in map(Path, run_dirs):
        evals = [r for r in run.read_metrics(d) if r["kind"] == "eval"]
        course = [{"step": r["step"], "models": {m: {k: f[k] for k in ("latent", "shuffled latent")}
                                                  for m, f in r["models"].items()}} for r in evals]  # fmt: skip
        found.append({"kind": "latent", **run.read_json(d / "result.json"), "course": course})
    for r in found[1:]:
        for key in (*ENVIRONMENT, "threads"):
            if r[key] != found[0][key]:
                raise UserError(f"{target}: runs differ in {key}: {r[key]} and {found[0][key]}")
    found.sort(key=lambda r: (r["config"]["reader"], r["config"]["pool"], r["config"]["n_latents"]))
    with run.replacing(target) as tmp:
        tmp.write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")


def cells(scores: dict) -> list[str]:
    return [f"{scores[k]:.3f}" for k in SCORES]


def described(config: dict) -> str:
    """What tells the runs of a record apart."""
    return {"bytes": "bytes", "tokens": f"tokens, {config['pool']}"}[config["reader"]]


def table(path: str | Path) -> str:
    """Scores: text and no context once a model, the rest by number of latents. Then what the prefixes look like."""
    rows = records.read_lines(path)
    body, prefixes = [], []
    for name in rows[0]["result"]["models"]:
        first = rows[0]["result"]["models"][name]
        body += [(name, "-", "-", kind, *cells(first[kind])) for kind in ("text", "no context")]
        for r in rows:
            config, of = r["config"], r["result"]["models"][name]
            what = (described(config), str(config["n_latents"]))
            body += [(name, *what, f"**{k}**" if k == "latent" else k, *cells(of[k])) for k in CONDITIONS]
            prefixes.append((name, *what, str(r["course"][-1]["step"]), f"{r['result']['training_seconds'] / 60:.0f}",
                             *(f"{of['prefix'][k]:.3g}" for k in PREFIX)))  # fmt: skip
    first = markdown(["model", "encoder", "M", "reads", *SCORES.values()], body)
    head = ["model", "encoder", "M", "steps", "training, min", "prefix RMS", "embeddings' RMS", "std",
            "std between rows", "scale"]  # fmt: skip
    return f"{first}\n\n{markdown(head, prefixes)}"


def lines_of_latents(axes, rows: list[dict], name: str, score: str) -> None:
    """One model's score over the number of latents, of one encoder; the whole text as a level."""
    several = [r["config"]["n_latents"] for r in rows]
    for kind, color in CONDITIONS.items():
        values = [r["result"]["models"][name][kind][score] for r in rows]
        axes.plot(several, values, color=color, marker="o", label=kind)
    axes.axhline(rows[0]["result"]["models"][name]["text"][score], color="black", lw=0.8, ls=":", label="whole text")
    axes.set_xscale("log", base=2)
    axes.set_xticks(several, several)
    axes.set(xlabel="latents, M", ylabel=SCORES[score], ylim=(0, None), title=name)
    axes.legend(frameon=False)


def lines_of_steps(axes, rows: list[dict], name: str, score: str) -> None:
    """The same score over the steps of each run; dashed, with another row's prefix."""
    for r in rows:
        steps = [c["step"] for c in r["course"]]
        for kind, style in (("latent", "-"), ("shuffled latent", "--")):
            values = [c["models"][name][kind][score] for c in r["course"]]
            label = f"M = {r['config']['n_latents']}" if kind == "latent" else None
            axes.plot(steps, values, style, color=f"C{rows.index(r)}", label=label)
    axes.set(xlabel="step", ylabel=SCORES[score], ylim=(0, None), title=name)
    axes.legend(frameon=False)


def figure(path: str | Path):
    """A row a model: F1 and the first token over M, and F1 over the steps, of the runs that read tokens and select."""
    import matplotlib.pyplot as plt

    rows = [r for r in records.read_lines(path) if r["config"]["pool"] == "select"]
    names = list(rows[0]["result"]["models"])
    fig, panels = plt.subplots(len(names), 3, figsize=(13, 3.4 * len(names)), layout="constrained", squeeze=False)
    for name, (left, middle, right) in zip(names, panels, strict=True):
        lines_of_latents(left, rows, name, "f1")
        lines_of_latents(middle, rows, name, "first1")
        lines_of_steps(right, rows, name, "f1")
    return fig
