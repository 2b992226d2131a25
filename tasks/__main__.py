"""Look at a task before training on it: how many examples there are, how long they are, what they look like.

    python -m tasks                                            # all tasks
    python -m tasks retrieval --question=first                 # one of them, with any of its options
    python -m tasks arc --n_train=0 --n_val=0 --n_show=5       # 0 = all, where there is a fixed number
    python -m tasks configs/arc_qfirst.py                      # what a config trains on
    python -m tasks punc --help                                # its options

Besides a task's own options: --tokenizer=world --vocab_file= --data_seed=1234 --n_train=200 --n_val=50 --n_show=3
--show_chars=1500 (of a prompt; 0 = all of it).
"""

import ast
import importlib
import inspect
import re
import runpy
import statistics
import sys
import time

import tasks
from common.errors import UserError
from common.tokenizer import get_tokenizer

SETTINGS = dict(tokenizer="world", vocab_file="", data_seed=1234, n_train=200, n_val=50, n_show=3, show_chars=1500)


# --- what is asked for
def convert(arg: str, text: str, kind, default: object) -> object:
    """`text` as a value of the type `kind`."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return tasks.typed(f"{arg}: it", value, kind, default)


def parse(argv: list[str]) -> tuple[str, dict, dict]:
    """-> name of the task, settings, its options."""
    name, settings, options = argv[0], dict(SETTINGS), {}
    if name.endswith(".py"):
        try:
            found = runpy.run_path(name)
        except OSError as e:
            raise UserError(f"config file {name} can't be read ({e.strerror})") from e
        name, options = found.get("task", "infill"), dict(found.get("task_args", {}))
        settings |= {key: found[key] for key in SETTINGS if key in found}
    known = tasks.signature(name)
    types = {key: (p.annotation, p.default) for key, p in known.items()}
    types = {key: (type(value), value) for key, value in SETTINGS.items()} | types
    for arg in argv[1:]:
        key, eq, text = arg.lstrip("-").removeprefix("task_args.").partition("=")
        if not arg.startswith("--") or key not in types:
            raise UserError(f"{arg}: {name} has no such option, it knows {', '.join({**known, **SETTINGS})}")
        values = options if key in known else settings
        values[key] = convert(arg, text if eq else "True", *types[key])
    return name, settings, options


# --- what is printed
def about(name: str) -> str:
    return (importlib.import_module(f"tasks.{name}").__doc__ or "").strip()


def options_help(name: str) -> str:
    """The part of the signature of `build` with the options and their comments."""
    source = inspect.getsource(importlib.import_module(f"tasks.{name}").build)
    lines = re.split(r"\n\) -> ", source)[0].split("\n")
    return "\n".join(line for line in lines if re.match(rf"    ({'|'.join(tasks.signature(name)) or '-'})\b", line))


def spread(numbers: list[int]) -> str:
    return f"{min(numbers)} / {round(statistics.median(numbers))} / {max(numbers)}"


def some(rows, n: int = 500) -> list:
    """Up to n rows from all over."""
    return [rows[i] for i in range(0, len(rows), -(-len(rows) // n) or 1)]


def count(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def line(title: str, text: str) -> None:
    print(f"{title:18}{text}")


def numbers(metrics: dict[str, float]) -> str:
    return " | ".join(f"{key} {value:.4f}" for key, value in metrics.items())


def given(e: tasks.Example, answer: list[int]) -> list[int]:
    """`answer` as what a model says of e: it fills exactly the blanks there are."""
    return [answer[i % len(answer)] for i in range(len(e.blanks))] if e.blanks else answer


def scores(task: tasks.Task, shift: int) -> str:
    """What the gold answers get when every row is given those of the row `shift` places on."""
    rolled = task.val[shift:] + task.val[:shift]
    metrics = task.score(task.val, [given(e, other.answer) for e, other in zip(task.val, rolled, strict=True)])
    if task.score_options:
        metrics |= task.score_options(task.val, [e.options.index(e.answer) for e in rolled])
    if task.score_odds:
        odds = [[2.0 * (token == task.contrast[0]) - 1 for token in e.answer] for e in rolled]
        metrics |= task.score_odds(task.val, odds)
    return numbers({task.metric: metrics[task.metric], **metrics})


def visible(tok, e: tasks.Example) -> str:
    """The prompt as text; blanks are shown as _ whatever the mask token is."""
    parts, start = [], 0
    for i in (*e.blanks, len(e.prompt)):
        parts.append(tok.decode(e.prompt[start:i]))
        start = i + 1
    return "_".join(parts)


def show(tok, e: tasks.Example, chars: int) -> None:
    text = visible(tok, e)
    if 0 < chars < len(text):
        half = chars // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    where = f", {count(len(e.blanks), 'blank')} shown as _" if e.blanks else ""
    print(f"\n--- {e.id}: {count(len(e.prompt), 'token')}{where}\n{text}")
    print(f"=> {tok.decode(e.answer)!r}, {count(len(e.answer), 'token')}")


def view(name: str, settings: dict, options: dict) -> None:
    tok = get_tokenizer(settings["tokenizer"], settings["vocab_file"] or None)
    start = time.perf_counter()
    task = tasks.build(name, tok, settings["data_seed"], settings["n_train"], settings["n_val"], **options)
    seconds = time.perf_counter() - start
    print(about(name).split("\n\n")[0].replace("\n", " "))
    line("options", ", ".join(f"{key}={value!r}" for key, value in options.items()) or "all defaults")
    line("examples", f"{len(task.train)} training, {len(task.val)} validation; built in {seconds:.1f} s")
    if task.removed:
        line("left out", ", ".join(f"{n} {reason}" for reason, n in task.removed.items()))
    train = some(task.train)
    for title, rows in (("training", train), ("validation", task.val)):
        if rows:
            counts = {"prompt": [len(e.prompt) for e in rows], "answer": [len(e.answer) for e in rows]}
            counts |= {"options": [len(e.options) for e in rows]} if any(e.options for e in rows) else {}
            of = f" of {len(rows)} rows" if len(rows) < len(task.train) and rows is train else ""
            line(title, ", ".join(f"{key} {spread(n)}" for key, n in counts.items()) + f"  (least / median / most{of})")
    cut = f"may be cut on the {task.truncate}" if task.truncate else "are never cut"
    line("limits", f"decoding stops after {task.max_new_tokens} tokens; prompts that are too long {cut}")
    line("score", f"{task.metric}; levels: {numbers(task.levels) or 'none'}")
    for title, shift in (("gold answers", 0), ("of the next row", 1))[: len(task.val)]:
        line(title, scores(task, shift))
    for e in task.val[: settings["n_show"]]:
        show(tok, e, settings["show_chars"])


def main(argv: list[str]) -> None:
    if not argv:
        for name in tasks.names():
            print(f"{name:18}{about(name).split(chr(10))[0]}")
        print("\npython -m tasks NAME shows one; --help says how")
    elif argv[0] in ("-h", "--help"):
        print(__doc__.strip())
    elif {"-h", "--help"} & {*argv}:
        name = parse(argv[:1])[0]
        print(about(name), f"options of {name} and their defaults:\n{options_help(name)}", sep="\n\n")
    else:
        view(*parse(argv))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(1)
