"""Configuration: precedence, types, and what is said about mistakes."""

import ast

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
_private = 3
CONSTANT = 4


def function():
    pass
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
    assert set(script()["settings"]) == {"steps", "rate", "name", "flag", "auto", "sizes", "options"}
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
        (["nowhere.py"], ["nowhere.py", "does not exist"]),
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
        ("def f(): pass", ["f", "function"]),
        ("steps = 1\nrate = = 2", ["line 2"]),
        ("steps = 1 / 0", ["ZeroDivisionError"]),
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
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'")
    with pytest.raises(UserError, match="not UTF-8"):
        script(tmp_path / "latin.py")


def test_help(script, capsys):
    with pytest.raises(SystemExit) as e:
        script("--help")
    assert e.value.code == 0
    out = capsys.readouterr().out
    for text in ("python script.py configs/a.py", "--steps=10", "how many, e.g. 5 # or 6", "--name='a # b'",
                 "a string with a hash", "None = chosen by itself"):  # fmt: skip
        assert text in out
    assert "CONSTANT" not in out


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_fits_the_training_script_and_says_how_to_run_it(path):
    tree = ast.parse((ROOT / "train_sft.py").read_text(encoding="utf-8"))
    keys = {n.targets[0].id for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    source = ast.parse(path.read_text(encoding="utf-8"))
    assert {n.targets[0].id for n in source.body if isinstance(n, ast.Assign)} <= keys
    assert f"python train_sft.py configs/{path.name}" in ast.get_docstring(source)
