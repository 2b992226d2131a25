"""Configuration of a script: the globals at its top, overridden by config files, then by --key=value.

    from common import config
    settings = config.override(globals())     # after the last configurable global

    python train_sft.py configs/a.py configs/b.py --lr=1e-4 --task_args.n_digits=6 --compare

Later beats earlier. A key is a lower-case global of simple type (int, float, bool, str, list, tuple, dict, None); the
comment behind it is its help text. Config files are data: assignments of known keys, names with a leading underscore
are their own business, and the docstring says how to run them.
"""

import ast
import difflib
import io
import sys
import tokenize
import traceback
from pathlib import Path

from common.errors import UserError

SIMPLE = (int, float, bool, str, list, tuple, dict, type(None))
_files: list[str] = []
_changes: list[str] = []


def files() -> list[str]:
    """The config files that the last override() read, in order."""
    return list(_files)


def changes() -> str:
    """What the last override() changed, one `key = value  (was default)` a line."""
    return "\n".join(_changes) or "config: all defaults"


def override(g: dict, argv: list[str] | None = None) -> dict:
    """Apply files and flags of `argv` (default: the command line) to the globals `g` -> all keys and their values.

    Prints help and exits on -h or --help. Raises UserError for an unknown key, a wrong type or an unreadable file.
    """
    argv = sys.argv[1:] if argv is None else argv
    lines = _assigned(g["__file__"])
    defaults = {k: v for k, v in g.items() if k in lines and isinstance(v, SIMPLE)}
    if "-h" in argv or "--help" in argv:
        print(_help(g, defaults, lines))
        raise SystemExit(0)
    values = dict(defaults)
    _files[:] = [a for a in argv if not a.startswith("-")]
    for path in _files:
        for key, value in _read(path).items():
            _set(values, defaults, key, value, where=path)
    for arg in (a for a in argv if a.startswith("-")):
        name, eq, text = arg.lstrip("-").partition("=")
        key, dot, item = name.replace("-", "_").partition(".")
        default = _known(defaults, key, where=arg)
        if dot and not (isinstance(default, dict) and item):
            raise UserError(f"{arg}: {key} is not a dict, it has no item {item!r}" if item else f"{arg}: which item?")
        default = values[key].get(item) if dot else default
        if not eq and not isinstance(default, bool):
            raise UserError(f"{arg}: a value is missing, write --{name}=VALUE")
        value = text if isinstance(default, str) else _literal(text) if eq else True
        _set(values, defaults, key, {**values[key], item: value} if dot else value, where=arg)
    _changes[:] = [f"{k} = {v!r}  (was {defaults[k]!r})" for k, v in values.items() if v != defaults[k]]
    g.update(values)
    return values


def check(settings: dict, choices: dict[str, list], counts=(), signed=()) -> None:
    """UserError for the first key whose value (a list: one of its items) is none of its choices, or too small a number.

    counts: keys that are at least 1; no other number may be negative, but for those of `signed`.
    """
    for key, known in choices.items():
        found = settings[key] if isinstance(settings[key], list) else [settings[key]]
        if not found or any(one not in known for one in found):
            raise UserError(f"{key}={settings[key]!r}: choose from {', '.join(known)}")
    for key, value in settings.items():
        least = 1 if key in counts else 0
        if isinstance(value, int | float) and value < least and key not in signed:
            raise UserError(f"{key}={value}: it must be at least {least}")


def _assigned(path: str) -> dict[str, int]:
    """{lower-case name assigned at the top level of a script: its line}."""
    out = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
        if name.islower() and not name.startswith("_"):
            out.setdefault(name, node.end_lineno)
    return out


def _simple(value) -> bool:
    """Whether JSON can hold it, so that a run can be resumed from its record."""
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, SIMPLE) and all(map(_simple, items))


def _known(defaults: dict, key: str, where: str):
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "--help lists all keys"
        raise UserError(f"{where}: unknown key {key!r}, {hint}")
    return defaults[key]


def _set(values: dict, defaults: dict, key: str, value, where: str) -> None:
    if not _simple(value):
        raise UserError(f"{where}: {key} must be made of plain values (numbers, strings, lists, dicts), got {value!r}")
    default = _known(defaults, key, where)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        value = type(default)(value)  # a default read back from JSON is a list
    if default is not None and type(value) is not type(default):
        wanted = f"{type(default).__name__} like {default!r}"
        raise UserError(f"{where}: {key} must be {wanted}, got {value!r} ({type(value).__name__})")
    values[key] = value


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _read(path: str) -> dict:
    """The assignments of a config file."""
    try:
        source = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UserError(f"config file {path} can't be read ({e.strerror}); values are written --key=value") from e
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise UserError(f"config file {path}, line {line}: not UTF-8 text (byte {e.start})") from e
    try:
        exec(compile(source, path, "exec"), found := {"__file__": path})
    except SyntaxError as e:
        raise UserError(f"config file {path}, line {e.lineno}: {e.msg}") from e
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        raise UserError(f"config file {path}, line {[0, *lines][-1]}: {type(e).__name__}: {e}") from e
    return {k: v for k, v in found.items() if not k.startswith("_")}


def _help(g: dict, defaults: dict, lines: dict[str, int]) -> str:
    """The script's docstring, then each key with its default and the comment behind it."""
    source = Path(g["__file__"]).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.removeprefix("#").strip() for t in tokens if t.type == tokenize.COMMENT}
    rows = [f"  --{k}={v!r:24} {comments.get(lines[k], '')}".rstrip() for k, v in defaults.items()]
    return "\n".join([(g.get("__doc__") or "").strip(), "", "keys and their defaults:", *rows])
