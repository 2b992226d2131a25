"""Records of single runs: reading and appending them, which of them may be paired, and how a search judges them.

A file of records has one JSON object a line, one a run. search.py writes them and common/tables.py makes tables of
them; what both have to agree on is here.
"""

import json
import os
from pathlib import Path

from common.errors import UserError

SEED_KEYS = ("fs_", "alpha_", "start_")  # beginnings of the configuration keys that belong to the seed, ...
ARM_KEYS = ("future_seed", "controls", "read_twice", "seed", "out_dir", "resume")  # ... and others that may differ
MUST_AGREE = ("steps", "tokens", "bsz", "seed", "val_hash", "base_sha256", "code", "torch")
SAME_GATE = 0.1  # effective gates this close, relatively, in every layer: the same candidate
# what only sets how strong the gate is
STRENGTH = ("fs_gate", "fs_alpha_init", "fs_seed_scale", "fs_schedule", "fs_m_min", "fs_m_max", "fs_layer_start",
            "alpha_lr", "alpha_head_lr")  # fmt: skip
BASELINE = "baseline"
IN_A_RUN = "its metrics.jsonl, or the file that report.py --collect makes of such directories"


def require_file(path: str | os.PathLike, what: str = "record", instead: str = IN_A_RUN) -> None:
    """UserError if `path` does not exist or is a directory; then it says to name `instead`."""
    if Path(path).is_dir():
        raise UserError(f"{what} {path} is a directory: name {instead}")
    if not Path(path).exists():
        raise UserError(f"{what} {path} does not exist: is its path right?")


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The objects of a JSONL file; UserError if it is no file, empty or not JSON (a half-written last line is)."""
    require_file(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except ValueError as e:
        raise UserError(f"record {path}: not one JSON object a line ({e})") from e
    if not records:
        raise UserError(f"{path} holds no record")
    return records


def mend(path: Path) -> list[dict]:
    """The records so far; cuts off a last line that a killed process left half written."""
    if not path.exists() or not (text := path.read_bytes()):
        return []
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with open(path, "rb+") as f:
            f.truncate(whole)
    return [json.loads(line) for line in text[:whole].splitlines()]


def append(path: Path, record: dict) -> None:
    """One more line, on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(record) + "\n")
        f.flush()
        os.fsync(f.fileno())


def of_seed(key: str) -> bool:
    return key.startswith(SEED_KEYS)


def difference(a: dict, b: dict, may_differ=()) -> str:
    """What forbids to pair two runs: the first thing in which they differ besides the seed, or ''."""
    for key in MUST_AGREE:
        if key not in may_differ and a.get(key) != b.get(key):
            return f"{key} ({a.get(key)} and {b.get(key)})"
    for key in a["config"]:
        if not of_seed(key) and key not in (*ARM_KEYS, *may_differ) and a["config"][key] != b["config"].get(key):
            return f"{key} ({a['config'][key]!r} and {b['config'].get(key)!r})"
    return ""


def pair(a: dict, b: dict, may_differ=()) -> None:
    """UserError unless the two runs took the same steps on the same data from the same weights with the same code."""
    if found := difference(a, b, may_differ):
        names = f"{a['stage']} {a['candidate']} and {b['candidate']}, seed {a['seed']}"
        raise UserError(f"{names}: the runs differ in {found}, they can't be paired")


def score(record: dict) -> float:
    """The task's metric in the last evaluation."""
    return record["metrics"][record["metric"]]


def numbers(metrics: dict) -> dict:
    """The metrics that two runs with the same arithmetic share exactly: no times, no gates, no controls."""
    return {k: v for k, v in metrics.items() if k not in ("training_seconds", "gate", "controls")}


def identical(a: dict, b: dict) -> bool:
    """Bit for bit the same result, at every evaluation."""
    return numbers(a["metrics"]) == numbers(b["metrics"]) and a["curve"] == b["curve"]


def gates(record: dict) -> list[float]:
    """The effective gate of every layer, 0 below the first seeded one."""
    return [0.0] * record["config"]["fs_layer_start"] + record["gate"]


def same_candidate(a: dict, b: dict) -> bool:
    """Whether two seeded runs are the same experiment: gates alike in all layers, nothing else different."""
    close = all(abs(x - y) <= SAME_GATE * max(x, y) for x, y in zip(gates(a), gates(b), strict=True))
    rest = [{k: v for k, v in r["config"].items() if of_seed(k) and k not in STRENGTH} for r in (a, b)]
    return close and rest[0] == rest[1]


def judge(runs: list[dict], prune: float) -> list[dict]:
    """What a stage of a search makes of its candidates, in the order in which they were run.

    runs: the records of the stage, the baseline first. prune: percentage points over the baseline below which a
    candidate is dropped. Returns dicts: record, pp (difference, or None), word ("kept", "pruned", ...); a candidate
    that is the baseline, or an earlier candidate again, is named so and neither kept nor counted. UserError if the
    baseline failed or a run can't be paired with it.
    """
    base = next((r for r in runs if r["candidate"] == BASELINE), None)
    if base is None or base["status"] != "ok":
        reason = base["error"] if base else "it was not run"
        raise UserError(f"the baseline of a stage failed, --retry runs it again: {reason}")
    out = []
    for r in (r for r in runs if r is not base):
        pp, word = None, f"{r['status']}: {r['error']}"
        if r["status"] == "ok":
            pair(base, r)
            pp = 100 * (score(r) - score(base))
            earlier = [o["record"] for o in out if o["pp"] is not None and o["word"] in ("kept", "pruned")]
            twin = next((e["candidate"] for e in earlier if same_candidate(e, r)), None)
            same = "no-op: the baseline bit for bit" if identical(base, r) or not any(r["gate"]) else ""
            word = same or (f"same gate as {twin}" if twin else "kept" if pp >= prune else "pruned")
        out.append(dict(record=r, pp=pp, word=word))
    return out


def tried(judged: list[dict]) -> int:
    """How many different candidates were compared: the k of a best-of-k claim."""
    return sum(j["word"] in ("kept", "pruned") for j in judged)
