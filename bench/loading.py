"""Loading: time and memory of every task at its published size, and programs a second of MBPP's sandbox.

    python bench/loading.py --data=DIRECTORY                 # two minutes; official files below it, others generated
    python bench/loading.py --data=DIRECTORY --json=loading.json
    python bench/loading.py arc_optionsfirst sudoku9_suffix  # some of the configurations

A task is built by its configuration in configs/, in a process of its own: validation examples, and as many training
examples as a run of it takes; then once more, when token ids of long texts are known (common/token_cache.py). Seconds
are the process's CPU time, so other programs on the machine hardly count; peak memory is its own, with Python, numpy
and the tokenizer. What is not below DIRECTORY is generated in the official form, with the official number of rows of
about their length (English words, random chains): times and memory then mean something, contents do not.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FILES = {  # configuration: {option: file}
    "arc_optionsfirst": {"data": "ARC-Challenge-Train.jsonl", "val_data": "ARC-Challenge-Dev.jsonl"},
    "hotpot_qafter_4096": {"data": "hotpot_dev_distractor_v1.json"},
    "squad_qafter": {"data": "train-v1.1.json", "val_data": "dev-v1.1.json"},
    "mbpp_qafter": {"data": "mbpp.jsonl"},
    "punc_head_l8": {"data": "hotpot_dev_distractor_v1.json"},
    "protein_ss_cos_l10": {"data": "flip_netsurfp2_train.jsonl.gz", "val_data": "flip_netsurfp2_val.jsonl"},
    "protein_contact_balanced": {"data": "contact-train.jsonl", "val_data": "contact-valid.jsonl"},
    "sudoku4_random": {},
    "sudoku9_suffix": {},
    "retrieval_scratch": {},
    "quickstart": {},
}


# --- files in the official form
@cache
def words() -> np.ndarray:
    from pydoc_data.topics import topics  # English that comes with Python

    return np.array(re.findall(r"[A-Za-z]+[,.]?", " ".join(topics.values())))


def prose(random, n: int) -> str:
    """About n characters."""
    return " ".join(words()[random.integers(len(words()), size=max(2, n // 6))])


def hotpot(random, n: int) -> list:
    rows = []
    for i in range(n):
        size = random.integers(90, 245)
        context = [[f"{prose(random, 12)} {i} {j}", [prose(random, size) for _ in range(4)]] for j in range(10)]
        facts = [[title, 0] for title, _ in context[:2]]
        rows.append(dict(_id=str(i), question=prose(random, 105) + f" {i}?", answer=prose(random, 14),
                         supporting_facts=facts, context=context))  # fmt: skip
    return rows


def squad(random, articles: int, paragraphs: int, questions: int) -> dict:
    data = [dict(title=f"Article {a}", paragraphs=[]) for a in range(articles)]
    for p in range(paragraphs):
        context = prose(random, 740)
        start = context.index(" ", 300) + 1
        answers = [dict(text=context[start : context.index(" ", start + 12)], answer_start=start)]
        share = range(questions * p // paragraphs, questions * (p + 1) // paragraphs)
        qas = [dict(id=str(q), question=prose(random, 60) + "?", answers=answers) for q in share]
        data[p % articles]["paragraphs"].append(dict(context=context, qas=qas))
    return dict(data=data)


def chains(random, n: int):
    """Random walks of 3.8 angstrom a step, ProteinNet's columns; the published set has 240 residues on average."""
    for i in range(n):
        size = int(random.integers(60, 420))
        steps = random.normal(size=(size, 3))
        at = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        seq = bytes(random.choice(list(b"ACDEFGHIKLMNPQRSTVWY"), size).tolist()).decode()
        yield dict(name=f"chain {i}", seq=seq, tertiary=at.round(1).tolist(), valid_mask=[True] * size)


MADE = {  # file: its generator; numbers are those of the official files
    "hotpot_dev_distractor_v1.json": lambda random: hotpot(random, 7405),
    "train-v1.1.json": lambda random: squad(random, 442, 18896, 87599),
    "dev-v1.1.json": lambda random: squad(random, 48, 2067, 10570),
    "contact-train.jsonl": lambda random: chains(random, 25299),
    "contact-valid.jsonl": lambda random: chains(random, 224),
}


def find(name: str, data: str, made: Path) -> tuple[str, bool]:
    """-> path, whether it is the real one."""
    if data and (found := sorted(Path(data).rglob(name))):
        return str(found[0]), True
    path = made / name
    if not path.exists():
        rows = MADE[name](np.random.default_rng(0))
        lines = [rows] if name.endswith(".json") else rows
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in lines)
    return str(path), False


# --- in a process of its own
def build(name: str, files: dict, vocab: str) -> dict:
    import tasks
    from bench.engines import peak_rss
    from common.tokenizer import get_tokenizer

    start = time.process_time()
    c = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    tok = get_tokenizer(c.get("tokenizer", "world"), vocab or None)
    loaded = time.process_time()
    options = c["task_args"] | files
    task = tasks.build(c["task"], tok, 1234, c.get("n_train", 100000), c.get("n_val", 256), **options)
    built = time.process_time()
    n = min(len(task.train), c["max_steps"] * c["bsz"])
    tokens = sum(len(e.prompt) + len(e.answer) for rows in ((task.train[i] for i in range(n)), task.val) for e in rows)
    made = time.process_time()
    return dict(task=c["task"], train=n, val=len(task.val), tokenizer_seconds=loaded - start, seconds=built - loaded,
                train_seconds=made - built, tokens=tokens, rss_gib=peak_rss())  # fmt: skip


def programs(files: dict) -> dict:
    """All gold programs of MBPP, each contained and with its tests."""
    from common import sandbox
    from tasks import mbpp

    rows = mbpp.read(files["data"]).values()
    todo = [sandbox.Program(row["code"], row["setup"], tuple(row["test_list"])) for row in rows]
    sandbox.missing()  # tries the walls once; not a part of the pace
    start, before = time.perf_counter(), sum(os.times()[:4])  # of this process and of those that it waited for
    solved = sum(v.solved for v in sandbox.run(todo))
    spent = dict(seconds=time.perf_counter() - start, cpu_seconds=sum(os.times()[:4]) - before)
    return dict(programs=len(todo), solved=solved, workers=len(os.sched_getaffinity(0)), **spent)


# --- tables and the record
def tables(record: dict) -> list[tuple[list[str], list[tuple]]]:
    from bench.measuring import number

    head = ["configuration", "data", "examples", "tokens", "build, s", "training examples, s",
            "both, second start, s", "peak RSS, GiB"]  # fmt: skip
    rows = [
        (r["key"][0], r["data"], f"{r['train']} + {r['val']}", number(r["tokens"], 0), number(r["seconds"], 2),
         number(r["train_seconds"], 2), number(r["again_seconds"], 2), number(r["rss_gib"], 2)) for r in record["rows"]
    ]  # fmt: skip
    made, s = [(head, rows)], record["sandbox"]
    if s:
        head = ["gold programs of MBPP", "pass", "at once", "s", "a second", "CPU s"]
        pace = number(s["seconds"]), number(s["programs"] / s["seconds"]), number(s["cpu_seconds"])
        made.append((head, [(str(s["programs"]), str(s["solved"]), str(s["workers"]), *pace)]))
    return made


def apart(cache: str, command: str, *job) -> dict:
    """What `build` or `programs` returns, of a process of its own; {"failed": why} if it ended otherwise."""
    env = os.environ | dict(XDG_CACHE_HOME=cache)  # empty at first: the user's may know the texts already
    command = [sys.executable, __file__, command, json.dumps(job)]
    process = subprocess.run(command, capture_output=True, text=True, env=env)
    if process.returncode == 0:
        return json.loads(process.stdout)
    return dict(failed=(process.stderr.strip() or f"it ended with code {process.returncode}").splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help=f"of {', '.join(FILES)}")
    parser.add_argument("--data", default="", metavar="DIRECTORY")
    parser.add_argument("--vocab_file", default="", metavar="FILE", help="of the World tokenizer; else downloaded")
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    from bench import measuring
    from common import run
    from common.errors import UserError

    if unknown := set(args.configs) - set(FILES):
        raise UserError(f"{min(unknown)} is not measured here: choose from {', '.join(FILES)}")
    rows, missing, sandbox = [], {}, None
    with tempfile.TemporaryDirectory() as made:
        for name in args.configs or FILES:
            try:
                found = {option: find(file, args.data, Path(made)) for option, file in FILES[name].items()}
            except KeyError as e:
                missing[name] = f"{e} is not below {args.data or 'a DIRECTORY'}"
                continue
            files = {option: path for option, (path, _) in found.items()}
            row, again = (apart(f"{made}/cache", "build", name, files, args.vocab_file) for _ in range(2))
            if "failed" in row:
                missing[name] = row["failed"]
                continue
            kinds = {"official" if real else "generated" for _, real in found.values()}
            row |= dict(again_seconds=again["seconds"] + again["train_seconds"])
            rows.append(dict(key=[name], data=" and ".join(sorted(kinds)) or "none", **row))
            if name == "mbpp_qafter":
                sandbox = apart(made, "programs", files)
                if "failed" in sandbox:
                    missing["sandbox"], sandbox = sandbox["failed"], None
    record = measuring.record("loading", wkv="not used", rows=rows, sandbox=sandbox, missing=missing)
    print(measuring.described(record), end="\n\n")
    for table in tables(record):
        print(measuring.text(*table), end="\n\n")
    for name, reason in missing.items():
        print(f"{name}: not measured: {reason}")
    if args.json:
        run.write_json(args.json, record)


if __name__ == "__main__":
    if sys.argv[1:2] in (["build"], ["programs"]):
        print(json.dumps({"build": build, "programs": programs}[sys.argv[1]](*json.loads(sys.argv[2]))))
    else:
        from common import run  # imports torch, whose memory is not that of a task

        run.cli(main)
