"""Search for a seed that helps on a task, then confirm it: on new seeds and new validation rows, with controls.

    python search.py configs/search_protein_ss.py                    # started again after a kill, it goes on
    python search.py configs/search_protein_ss.py --engine=ray       # the runs of a stage at once, on a Ray cluster
    python report.py out/search_protein_ss/records.jsonl             # the tables

    probe      the largest batch that fits (with bsz=0 only); from then on all runs have the same
    quick      the baseline and every candidate; those below the threshold `prune` are dropped
    medium     those that are left, longer, and a baseline of the same length
    confirm    the best one, paired with baselines on seeds and validation rows that had no part in the choice,
               and the controls, which are runs like any other

Every run is a process of train_sft.py. out_dir/NAME/ holds search.json (what was decided beforehand, and can't change
later), records.jsonl (one line a run, written when it ends) and the runs' own directories. Nothing is run twice:
a run that was under way when the search was killed is waited for if it still lives, else resumed where it was saved.
"""

import contextlib
import json
import re
import shutil
import sys
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from common import config, records, run
from common.errors import UserError
from common.launch import code_version, execute
from common.tables import search_tables

# --- config: what is run
task_config = ""  # config file of train_sft.py: task, model, sizes, rates
overrides = {}  # of it, in all runs
seeded = {}  # what all candidates have in common: keys of the seed (fs_*, alpha_*) and their values
candidates = {}  # {name: keys of the seed and their values}
published = []  # names in PUBLISHED, to be tried as well
# the protocol
bsz = 0  # examples a step, fixed by design; 0 = probe for the largest that fits
max_bsz = 64  # where the probe stops
quick_steps = 120
medium_steps = 360
confirm_steps = 0  # 0 = medium_steps
quick_seed = 0
medium_seed = 1
confirm_seeds = [11, 12, 13, 14, 15]
confirm_data_seed = 4321  # of the examples of the confirmation; the search keeps the data_seed of task_config
prune = 0.2  # percentage points over the baseline that a candidate must reach
controls = ["gate forced to zero", "trained start state", "read twice", "instruction first"]  # of the confirmation
first = {}  # task_args that put the instruction first, if the task knows them
# running
out_dir = "out"
time_limit = 3600.0  # seconds a run
processes = 1  # of a run; more: by torchrun
engine = "serial"  # serial | ray: all runs of a stage at once, as many as the cluster holds; files on a shared disk
cpus_per_run = 1  # what a run asks of Ray
gpus_per_run = 0.0
retry = False  # run again what failed
keep_weights = False  # of finished runs

# What rounds 20 to 28 of the published campaign tried on 12 layers: a fixed gate sigmoid(-2) = 0.12, norm, detach,
# clip 1, and one change each. Their head gate was a product of two sigmoids, 0.0022 at its start: sigmoid(-6.1).
PUBLISHED_BASE = dict(fs_gate="scalar", fs_alpha_init=-2.0, alpha_lr=0.0, fs_norm=True, fs_detach=True, fs_clip=1.0)
PUBLISHED = {
    "scalar": {},
    "trainable": {"alpha_lr": 5e-4},
    "sched_cos": {"fs_schedule": "cos", "fs_m_min": 0.4},
    "sched_linear": {"fs_schedule": "linear", "fs_m_min": 0.25},
    "head": {"fs_gate": "head", "fs_alpha_init": -6.1, "alpha_head_lr": 5e-4},
    "inputgate": {"fs_input_gate": True, "fs_w_lr": 5e-4, "fs_b_lr": 5e-4},
    "nonorm": {"fs_norm": False},
    "nodetach": {"fs_detach": False},
    "noclip": {"fs_clip": 0.0},
    "weak": {"fs_alpha_init": -3.0},
    "l6": {"fs_layer_start": 6},
    "l8": {"fs_layer_start": 8},
    "l10": {"fs_layer_start": 10},
}
OWN = ("max_steps", "seed", "data_seed", "bsz", "compare", "future_seed", "controls", "out_dir", "resume")
CONTROLS = {"trained start state": dict(start_state=True), "read twice": dict(read_twice=True)}
ALL_CONTROLS = ["gate forced to zero", *CONTROLS, "instruction first"]
PROBE_FROM = 8
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "MemoryError")  # Python, torch, CUDA
ZERO = dict(fs_seed_scale=0.0, alpha_lr=0.0, alpha_head_lr=0.0, fs_w_lr=0.0, fs_b_lr=0.0)  # and nothing moves it
# may change half way
FREE = ("out_dir", "time_limit", "engine", "cpus_per_run", "gpus_per_run", "retry", "keep_weights")


# --- progress
class Progress:
    """A row for each run that has ended; below them, on a terminal, a line that says how the present one fares."""

    def __init__(self):
        self.live, self.best = sys.stdout.isatty(), "-"
        self.row("stage", "candidate", "seed", "steps", "score", "pp", "seconds", "")

    def row(self, stage, candidate, seed, steps, score, pp, seconds, note):
        clear = "\r\x1b[K" if self.live else ""
        print(
            f"{clear}{stage:8} {candidate:28} {seed:>5} {steps:>6} {score:>7} {pp:>7} {seconds:>8}  {note}", flush=True
        )

    def done(self, r: dict, base: dict | None) -> None:
        pp, ok = "", r["status"] == "ok"
        with contextlib.suppress(UserError, KeyError):
            if base and base is not r:
                records.pair(base, r)
                pp = f"{100 * (records.score(r) - records.score(base)):+.2f}"
        gate = f"gate {r['gate']}" if ok and r["gate"] else ""
        score = f"{records.score(r):.4f}" if ok else "-"
        self.row(
            r["stage"], r["candidate"], r["seed"], r["steps"], score, pp, f"{r['seconds']:.0f}", gate or r["error"]
        )

    def running(self, spec: dict, left: str, line: str) -> None:
        if self.live:
            text = f"{spec['stage']} {spec['candidate']} | best so far: {self.best} | {left} left | {line}"
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)


# --- the protocol
class Search:
    """The stages over one records.jsonl. Each says what to run and is given the records, new or from before."""

    def __init__(self, home: Path):
        self.home, self.file, self.bsz = home, home / "records.jsonl", bsz
        self.code, self.trials = code_version(), all_candidates()
        self.done = {r["key"]: r for r in records.mend(self.file) if not (retry and r["status"] != "ok")}
        self.progress, self.ahead = Progress(), 0  # ahead: steps that later stages may need
        for r in self.done.values():
            self.progress.done(r, self.baseline_of(r))

    def spec(self, stage: str, candidate: str, changes: dict, steps: int, seed: int, **fixed) -> dict:
        """One run: its name in this search, its settings, and whatever else `execute` has to know."""
        key = "-".join([stage, re.sub(r"\W+", "_", candidate), str(changes.get("bsz", seed))])
        settings = dict(eval_every=steps, time_budget=0.0, future_seed=False) | overrides
        settings |= dict(compare=False, max_steps=steps, seed=seed, bsz=self.bsz) | fixed | changes
        settings["task_args"] = {**overrides.get("task_args", {}), **changes.get("task_args", {})}
        return dict(
            key=key, stage=stage, candidate=candidate, overrides=changes, steps=steps, seed=seed, settings=settings,
            task_config=from_root(task_config), folder=from_root(self.home / "runs" / key),
            processes=processes, time_limit=time_limit, prune=prune, code=self.code,
        )  # fmt: skip

    def baseline_of(self, r: dict) -> dict | None:
        same = (x for x in self.done.values() if (x["stage"], x["seed"]) == (r["stage"], r["seed"]))
        return next((x for x in same if x["candidate"] == records.BASELINE and x is not r), None)

    def run(self, specs: list[dict]) -> list[dict]:
        """All of them, but none that is on record; each is on the disk before the next one is taken up."""
        todo = [s for s in specs if s["key"] not in self.done]
        for s, r in zip(todo, ENGINES[engine](todo, self.tick), strict=True):
            records.append(self.file, r)
            self.done[s["key"]] = r
            self.progress.done(r, self.baseline_of(r))
            if not keep_weights:
                for name in ("last", "best"):
                    for weights in (run.ROOT / s["folder"]).glob(f"*/{name}"):
                        shutil.rmtree(weights)
        return [self.done[s["key"]] for s in specs]

    def tick(self, specs: list[dict], line: str) -> None:
        """specs: the one that runs and those of its stage that follow."""
        ran = [r for r in self.done.values() if r["status"] == "ok"]
        pace = sum(r["seconds"] for r in ran) / max(1, sum(r["steps"] for r in ran))
        left = round(pace * (self.ahead + sum(s["steps"] for s in specs)))
        self.progress.running(specs[0], f"at most {timedelta(seconds=left)}" if ran else "?", line)

    def probe(self) -> int:
        """The largest batch that fits, by doubling from PROBE_FROM, or halving if that is too much already."""

        def fits(n: int) -> bool:
            changes = dict(bsz=n, future_seed=True, eval_decode=False) | next(iter(self.trials.values()))
            (r,) = self.run([self.spec("probe", f"bsz {n}", changes, 2, quick_seed)])
            if r["status"] != "ok" and not any(words in r["error"] for words in NO_MEMORY):
                raise UserError(f"the probe failed, and not for want of memory: {r['error']}")
            return r["status"] == "ok"

        n = PROBE_FROM
        if fits(n):
            while 2 * n <= max_bsz and fits(2 * n):
                n *= 2
            return n
        while n > 1:
            n //= 2
            if fits(n):
                return n
        raise UserError("not even one example fits into memory: set checkpointing=True or shorten the prompts")

    def stage(self, stage: str, names: list[str], steps: int, seed: int) -> list[dict]:
        """A baseline and candidates at the same budget -> records.judge's findings that count."""
        runs = [(records.BASELINE, {}), *((n, self.trials[n]) for n in names)]
        judged = records.judge(self.run([self.spec(stage, n, c, steps, seed) for n, c in runs]), prune)
        judged = [j for j in judged if j["word"] in ("kept", "pruned")]
        if judged:
            best = max(judged, key=lambda j: j["pp"])
            self.progress.best = f"{best['record']['candidate']} {best['pp']:+.2f} pp ({stage})"
        return judged

    def confirmation(self, name: str) -> list[dict]:
        """Baseline, winner and controls on every seed; a closed gate on the first one only: it has to be exact."""
        win, steps, specs = self.trials[name], confirm_steps or medium_steps, []
        runs = {records.BASELINE: {}, name: win | dict(controls=True)}
        runs |= {c: CONTROLS[c] for c in controls if c in CONTROLS}
        if "instruction first" in controls and not first:
            print("control left out: `first` names no task_args that put the instruction first")
        elif "instruction first" in controls:
            runs["instruction first, no seed"] = dict(task_args=first)
            runs["instruction first"] = win | dict(task_args=first)
        zero = {"gate forced to zero": win | ZERO} if "gate forced to zero" in controls else {}
        for seed in confirm_seeds:
            for n, changes in (runs | (zero if seed == confirm_seeds[0] else {})).items():
                specs.append(self.spec("confirm", n, changes, steps, seed, data_seed=confirm_data_seed))
        return self.run(specs)

    def everything(self) -> None:
        """From the probe to the confirmation; stops early if nothing is left to confirm."""
        last = len(confirm_seeds) * (2 + len(controls)) * (confirm_steps or medium_steps)
        self.ahead = (len(self.trials) + 1) * (quick_steps + medium_steps) + last
        self.bsz = self.bsz or self.probe()
        self.ahead -= (len(self.trials) + 1) * quick_steps
        quick = self.stage("quick", list(self.trials), quick_steps, quick_seed)
        kept = [j["record"]["candidate"] for j in quick if j["word"] == "kept"]
        if not kept:
            return print(f"no candidate came {prune:+g} pp above the baseline: nothing to confirm")
        self.ahead = last
        medium = self.stage("medium", kept, medium_steps, medium_seed)
        if not medium:
            return print("no candidate is left at the medium budget: nothing to confirm")
        self.ahead = 0
        runs = self.confirmation(max(medium, key=lambda j: j["pp"])["record"]["candidate"])
        zero = next((r for r in runs if r["candidate"] == "gate forced to zero" and r["status"] == "ok"), None)
        if zero and not records.identical(zero, self.baseline_of(zero)):
            raise UserError("with the gate forced to zero the result is not the baseline's: the program is at fault")


def serial(specs: list[dict], tick):
    for i, spec in enumerate(specs):
        yield execute(spec, lambda line, i=i: tick(specs[i:], line))


def on_ray(specs: list[dict], tick):
    """All at once, wherever the cluster has room; handed on in the order of a serial search."""
    try:
        import ray
    except ImportError as e:
        raise UserError("engine='ray' needs the package ray: pip install ray, or leave engine='serial'") from e
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error")
    remote = ray.remote(num_cpus=cpus_per_run, num_gpus=gpus_per_run)(execute)
    for under_way in [remote.remote(spec) for spec in specs]:
        yield ray.get(under_way)


ENGINES = {"serial": serial, "ray": on_ray}


# --- check
def from_root(path) -> str:
    """How a run, which works in the directory of train_sft.py, and a record name a file."""
    path = Path(path).resolve()
    return (path.relative_to(run.ROOT) if path.is_relative_to(run.ROOT) else path).as_posix()


def all_candidates() -> dict[str, dict]:
    """{name: what it changes}, the search's own first."""
    own = {name: dict(future_seed=True) | seeded | c for name, c in candidates.items()}
    return own | {n: dict(future_seed=True) | PUBLISHED_BASE | seeded | PUBLISHED[n] for n in published}


def check() -> None:
    if not Path(task_config).is_file():
        raise UserError(f"task_config={task_config!r} is no file: name a config file of train_sft.py")
    lists = ((PUBLISHED, published, "published"), (ENGINES, [engine], "engine"), (ALL_CONTROLS, controls, "controls"))
    for known, names, what in lists:
        if wrong := [n for n in names if n not in known]:
            raise UserError(f"{what}: {wrong[0]!r} is unknown, use {', '.join(known)}")
    if wrong := sorted(set(OWN) & set(overrides)):
        raise UserError(f"overrides: {wrong[0]} is set by the search itself, by a key of its own")
    for name, changes in {"seeded": seeded, **candidates}.items():
        if wrong := [k for k in changes if not records.of_seed(k)]:
            raise UserError(f"{name}: {wrong[0]} is no key of the seed; what both arms must share belongs in overrides")
    taken = {re.sub(r"\W+", "_", name) for name in (records.BASELINE, *ALL_CONTROLS, *published)}
    if wrong := [n for n in candidates if not re.fullmatch(r"\w+", n) or n in taken]:
        raise UserError(f"candidates: {wrong[0]!r} is taken, or not one word of letters, digits and _: rename it")
    if not (candidates or published):
        raise UserError("no candidates: fill `candidates`, or name some of `published`: " + ", ".join(PUBLISHED))
    if twice := {quick_seed, medium_seed} & set(confirm_seeds):
        raise UserError(f"confirm_seeds: seed {min(twice)} has already chosen a candidate, take a new one")


def preregister(home: Path, settings: dict) -> None:
    """Write down what was decided before the first run; UserError if a search goes on under other decisions."""
    decided = {k: v for k, v in settings.items() if k not in FREE}
    decided |= dict(code=code_version(), task_config_text=Path(task_config).read_text(encoding="utf-8"))
    if not (home / "search.json").exists():
        return run.write_json(home / "search.json", decided)
    before = run.read_json(home / "search.json")
    if changed := [k for k in decided if json.loads(json.dumps(decided[k])) != before.get(k)]:
        what = "the program" if changed[0] == "code" else changed[0]
        raise UserError(f"{home}: {what} has changed since this search began: undo that, or give another out_dir")


def main():
    settings = config.override(globals())
    check()
    home = Path(out_dir) / Path(config.files()[0] if config.files() else task_config).stem
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "lock", timeout=0):
            preregister(home, settings)
            Search(home).everything()
            print(f"\n{search_tables(home / 'records.jsonl')}\nwrote {home / 'records.jsonl'}")
    except Timeout as e:
        raise UserError(f"{home}: another search works there") from e
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here")
        raise


if __name__ == "__main__":
    run.cli(main)
