"""Configuration: precedence, types, and what is said about mistakes."""

import ast
import json

import pytest

from common import config
from common.errors import UserError
from conftest import ROOT

SCRIPT = '''"""A script.

    python script.py configs/a.py
"""

import os

steps = 10  # how many, e.g. 5 # or 6
rate = 0.1
name = "a # b"  # a string with a hash
flag = False
auto = None  # None = chosen by itself
sizes = (1, 2)
options = {}  # a dict
long_name = (
    7  # inside
)  ## behind ##
names = []
_private = 3
CONSTANT = 4


def function():
    local = 5
    return local


if __name__ == "__main__":
    late = 1
'''


@pytest.fixture
def script(tmp_path):
    """Run override() as a script with these arguments would -> its globals."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def run(*argv):
        g = {"__file__": str(path)}
        exec(compile(SCRIPT, str(path), "exec"), g)
        g["settings"] = config.override(g, [str(a) for a in argv])
        return g

    return run


def file(tmp_path, text, name="c.py"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_only_simple_lower_case_globals_of_the_script_are_keys(script):
    assert set(script()["settings"]) == {
        "steps", "rate", "name", "flag", "auto", "sizes", "options", "long_name", "names",
    }  # fmt: skip
    assert config.changes() == "config: all defaults"


def test_later_beats_earlier_and_files_come_before_flags(script, tmp_path):
    a, b = file(tmp_path, "steps = 1\nrate = 1.0", "a.py"), file(tmp_path, "steps = 2", "b.py")
    g = script("--flag=True", a, b)
    assert (g["steps"], g["rate"], g["flag"]) == (2, 1.0, True)
    assert script("--steps=7", a)["steps"] == 7
    assert config.files() == [str(a)]
    assert "steps = 7  (was 10)" in config.changes()


@pytest.mark.parametrize(
    ("arg", "key", "value"),
    [
        ("--steps=5", "steps", 5),
        ("--steps=-5", "steps", -5),
        ("--rate=2", "rate", 2.0),
        ("--rate=1e-3", "rate", 1e-3),
        ("--name=007", "name", "007"),
        ("--name=a=b", "name", "a=b"),
        ("--name=", "name", ""),
        ("--flag", "flag", True),
        ("--flag=True", "flag", True),
        ("--auto=3", "auto", 3),
        ("--auto=text", "auto", "text"),
        ("--sizes=(3, 4)", "sizes", (3, 4)),
        ("--sizes=[3]", "sizes", (3,)),
        ("--options={'x': 1}", "options", {"x": 1}),
        ("--rate=-2.5", "rate", -2.5),
        ("--name=1e3", "name", "1e3"),
        ("--name=None", "name", "None"),
        ("--name='quoted'", "name", "'quoted'"),
        ("--name=--x=1 #y", "name", "--x=1 #y"),
        ("--long-name=8", "long_name", 8),
        ("--long_name=8", "long_name", 8),
        ("--auto=None", "auto", None),
        ("--auto={[1]: 2}", "auto", "{[1]: 2}"),  # looks like a literal, but is none
        ("--auto=" + "(" * 9999, "auto", "(" * 9999),
        ("--sizes=3, 4", "sizes", (3, 4)),
        ("--names=('a', 'b')", "names", ["a", "b"]),
    ],
)
def test_values(script, arg, key, value):
    got = script(arg)[key]
    assert got == value
    assert type(got) is type(value)


def test_items_of_a_dict(script, tmp_path):
    a = file(tmp_path, "options = {'x': 1, 'y': 2}")
    assert script(a, "--options.x=5", "--options.path=a/b.txt")["options"] == {"x": 5, "y": 2, "path": "a/b.txt"}
    assert script("--options.x=5")["options"] == {"x": 5}
    assert script()["options"] == {}, "one run must not change the next one's defaults"
    b = file(tmp_path, "options = {'path': 'x', 'fast': False, 'n': 3}", "b.py")
    got = script(b, "--options.path=007", "--options.fast", "--options.n-max=[1, 2]")["options"]
    assert got == {"path": "007", "fast": True, "n": 3, "n_max": [1, 2]}
    assert script("--options.n=8", "--options={'x': 1}")["options"] == {"x": 1}, "later beats earlier"


def test_settings_read_back_from_json_can_be_overridden(script, tmp_path):
    g = {"__file__": script()["__file__"], **json.loads(json.dumps(script()["settings"]))}
    g = config.override(g, ["--sizes=(5, 6)", str(file(tmp_path, "names = ('a',)"))])
    assert (list(g["sizes"]), list(g["names"])) == ([5, 6], ["a"])


def test_the_script_is_read_once(script, monkeypatch):
    reads, real = [], config.ast.parse
    monkeypatch.setattr(config.ast, "parse", lambda *args: reads.append(args) or real(*args))
    script()
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step=5"], ["--step=5", "did you mean 'steps'"]),
        (["--zzz=5"], ["zzz", "--help"]),
        (["--steps=1e3"], ["steps", "int", "1000.0"]),
        (["--steps=1.5"], ["steps", "int"]),
        (["--steps=True"], ["steps", "int"]),
        (["--steps"], ["value is missing"]),
        (["--flag=1"], ["flag", "bool"]),
        (["--flag=yes"], ["flag", "bool", "'yes'"]),
        (["--rate=fast"], ["rate", "float", "'fast'"]),
        (["--rate.x=1"], ["rate", "not a dict"]),
        (["--_private=1"], ["_private"]),
        (["--CONSTANT=1"], ["CONSTANT"]),
        (["--local=1"], ["unknown key 'local'"]),
        (["--late=1"], ["unknown key 'late'"]),
        (["--no-flag"], ["did you mean 'flag'"]),
        (["--option.x=1"], ["did you mean 'options'"]),
        (["--options.x"], ["value is missing"]),
        (["--options.=1"], ["which item"]),
        (["--options.x={1}"], ["options", "plain values"]),
        (["--options=3"], ["options", "dict"]),
        (["--auto={1, 2}"], ["auto", "plain values"]),
        (["--sizes=3"], ["sizes", "tuple"]),
        (["--rate=None"], ["rate", "float"]),
        (["--rate=True"], ["rate", "float"]),
        (["--flag=true"], ["flag", "like False", "'true'"]),
        (["--"], ["unknown key"]),
        (["nowhere.py"], ["nowhere.py", "No such file"]),
        (["--rate", "1e-4"], ["1e-4", "--key=value"]),
        (["."], ["config file .", "directory"]),
    ],
)
def test_mistakes_on_the_command_line(script, args, words):
    with pytest.raises(UserError) as e:
        script(*args)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 1", ["stepz", "did you mean 'steps'"]),
        ("steps = 'many'", ["steps", "int", "'many'"]),
        ("import math", ["math", "module"]),
        ("from math import sqrt", ["sqrt", "function"]),
        ("def f(): pass", ["f", "function"]),
        ("options = {'f': print}", ["options", "plain values"]),
        ("options = {'a': [{1}]}", ["options", "plain values"]),
        ("flag = 1", ["flag", "bool"]),
        ("steps = 1.0", ["steps", "int"]),
        ("name = None", ["name", "str"]),
        ("steps = 1\nrate = = 2", ["line 2"]),
        ("steps = 1\n  rate = 2", ["line 2"]),
        ("\n\nsteps = 1 / 0\nrate = 1.0", ["line 3", "ZeroDivisionError"]),
        ("steps = rate", ["line 1", "rate"]),
        ("name = '\0'", ["null"]),
    ],
)
def test_mistakes_in_a_file(script, tmp_path, text, words):
    path = file(tmp_path, text)
    with pytest.raises(UserError) as e:
        script(path)
    assert all(w in str(e.value) for w in [str(path), *words]), str(e.value)
    assert "\n" not in str(e.value)


def test_private_names_and_encodings(script, tmp_path):
    assert script(file(tmp_path, "_n = 3\nsteps = _n * 2"))["steps"] == 6
    assert script(file(tmp_path, "\ufeffname = 'é'"))["name"] == "é"  # as some editors write it
    (tmp_path / "latin.py").write_bytes(b"steps = 1\nname = '\xe9'")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        script(tmp_path / "latin.py")


def test_help(script, capsys):
    with pytest.raises(SystemExit) as e:
        script("--help")
    assert e.value.code == 0
    out = capsys.readouterr().out
    for text in ("python script.py configs/a.py", "--steps=10", "how many, e.g. 5 # or 6", "--name='a # b'",
                 "a string with a hash", "None = chosen by itself"):  # fmt: skip
        assert text in out
    row = {line.split("=")[0].strip(): line for line in out.splitlines() if line.startswith("  --")}
    assert row["--steps"].split("  ")[-1].endswith(" how many, e.g. 5 # or 6")
    assert row["--long_name"].endswith(" behind ##")
    assert row["--names"].rstrip() == "  --names=[]"
    assert "CONSTANT" not in out
    assert "_private" not in out


CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_fits_its_script_and_says_how_to_run_it(path):
    script = {"search": "search.py", "diffusion": "train_diffusion.py", "latent": "train_latent.py"}
    script = script.get(path.stem.split("_")[0], "train_sft.py")
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    keys = {n.targets[0].id for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    source = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n for n in source.body[1:] if not isinstance(n, ast.Assign)], "a config is a list of assignments"
    assert {n.targets[0].id for n in source.body if isinstance(n, ast.Assign)} <= keys
    assert f"python {script} configs/{path.name}" in ast.get_docstring(source)


@pytest.mark.parametrize(
    ("name", "control", "item"),
    [
        ("arc_optionsfirst", "arc_qfirst", "question"),
        ("hotpot_qafter_4096", "hotpot_qfirst", "question"),
        ("squad_qafter", "squad_qfirst", "question"),
        ("mbpp_qafter", "mbpp_qfirst", "order"),
    ],
)
def test_a_control_differs_from_what_it_controls_in_one_thing(name, control, item):
    a, b = (config._read(str(ROOT / "configs" / f"{n}.py")) for n in (name, control))
    assert a["task_args"].pop(item, None) != b["task_args"].pop(item, None)
    assert a == b
