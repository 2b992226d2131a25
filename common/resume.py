"""Going on with a run: what may still be changed, and a record that says what all of it was made with."""

import json
from pathlib import Path

from common import config, run
from common.errors import UserError

# What may differ between the first step and the last: places, the log, the use of the machine, evaluations.
FREE = {"resume", "out_dir", "model", "arms", "max_steps", "epochs", "time_budget", "save_every", "eval_every",
        "log_every", "n_show", "eval_bsz", "eval_decode", "controls", "micro_bsz", "checkpointing", "threads",
        "decoders", "more_sets", "rounds", "threshold", "block", "top_k", "temperature"}  # fmt: skip


def configure(g: dict) -> dict:
    """config.override for a script with the key `resume`: a resumed run goes on with what its config.json says.

    UserError if the command line changes what the training depends on: the optimizers keep their saved rates, and an
    arm that has ended can't be trained again, so that the record would say what was not done.
    """
    settings = config.override(g)
    if not g["resume"]:
        return settings
    begun = run.read_json(Path(g["resume"]) / "config.json")["config"]
    g.update(begun)
    settings = config.override(g)  # what the command line says still counts
    several = settings.get("compare") or len(settings.get("arms", ())) > 1
    steps = {"max_steps"} if several and settings["lr_schedule"] != "constant" else set()  # the rates follow from it
    for key in sorted(begun.keys() & settings.keys() - FREE | steps):
        if settings[key] == "auto":  # what it came to when the run began
            g[key] = settings[key] = begun[key]
        if json.dumps(settings[key]) != json.dumps(begun[key]):
            began = f"{g['resume']} began with {begun[key]!r}, and a resumed run can't change that"
            raise UserError(f"{key}={settings[key]!r}: {began}, leave it out or start a new run")
    return settings


def write_config(run_dir: Path, name: str, **found) -> dict:
    """Write config.json: `found` (config, val_hash, base_sha256, ...), the run's name and environment -> the same.

    A resumed run keeps its name and command and lists all versions it was made with. UserError if it would be evaluated
    on other rows than before, or has other base weights.
    """
    file, new = run_dir / "config.json", dict(name=name, **found, **run.environment())
    if file.exists():
        old = run.read_json(file)
        for key, what in (("val_hash", "validation rows"), ("base_sha256", "base weights")):
            if old.get(key) != new[key]:
                raise UserError(f"the {what} are not those that {run_dir} began with: restore them, or start a new run")
        new |= {k: old[k] for k in ("name", "argv") if k in old}
        for key in ("commit", "torch", "processor"):
            versions = [*str(old.get(key, new[key])).split(" + "), str(new[key])]
            new[key] = " + ".join(dict.fromkeys(versions))
        new["uncommitted_changes"] |= old["uncommitted_changes"]
    run.write_json(file, new)
    return new
