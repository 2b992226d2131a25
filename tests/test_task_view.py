"""`python -m tasks`, types of options, and the configs of the question answering tasks."""

import inspect
import re
import runpy
import subprocess
import sys

import pytest

import tasks
from common.errors import UserError
from conftest import ROOT
from task_checks import BYTES, arc_files, hotpot_row, write
from tasks import __main__ as view

CONFIGS = ["arc_optionsfirst", "arc_qfirst", "hotpot_qafter_4096", "hotpot_qfirst", "squad_qafter", "squad_qfirst"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_options_that_exist(name):
    found = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    assert found["task"] == name.split("_")[0]
    assert set(found["task_args"]) <= set(tasks.signature(found["task"]))
    assert found["compare"]
    if name.endswith("qfirst"):  # a control differs in the order alone
        other = {"arc": "arc_optionsfirst", "hotpot": "hotpot_qafter_4096", "squad": "squad_qafter"}[found["task"]]
        twin = runpy.run_path(str(ROOT / "configs" / f"{other}.py"))
        assert found["task_args"] == {**twin["task_args"], "question": "first"} != twin["task_args"]
        rest = [{k: v for k, v in f.items() if k.islower() and k[0] != "_" and k != "task_args"} for f in (found, twin)]
        assert rest[0] == rest[1]


def test_view_lists_all_tasks(capsys):
    view.main([])
    listed = dict(line.split(None, 1) for line in capsys.readouterr().out.split("\n\n")[0].split("\n"))
    assert list(listed) == tasks.names()
    for name in tasks.names():
        view.main([name, "--help"])
        out = capsys.readouterr().out
        assert listed[name] in out
        parameters = list(inspect.signature(__import__(f"tasks.{name}", fromlist=["build"]).build).parameters)[4:]
        assert re.findall(r"(?m)^    (\w+)\b", out.split("and their defaults:")[1]) == parameters
        assert (ROOT / "tasks" / f"{name}.py").read_text().startswith('"""')


def test_view_of_generated_tasks(capsys):
    for name, option in (("infill", "--kind=rightrev"), ("retrieval", "--question=first")):
        view.main([name, "--tokenizer=bytes", option, "--n_train=30", "--n_val=20", "--n_show=2"])
        out = capsys.readouterr().out
        assert re.search(r"(?m)^examples +30 training, 20 validation", out)
        assert re.search(r"(?m)^gold answers +accuracy 1\.0000", out)
        assert re.search(r"(?m)^score +accuracy; levels: chance 0\.1000", out)
        assert out.count("\n--- ") == 2
        assert float(re.search(r"of the next row +accuracy (\S+) ", out)[1]) < 0.5
    view.main(["infill", "--tokenizer=bytes", "--n_val=1", "--n_show=1"])
    assert re.search(r"\d\|M=________\|R=\d{8}\n=> '\d{8}', 8 tokens", capsys.readouterr().out)


def test_view_of_files(tmp_path, capsys):
    files = [f"--{key}={path}" for key, path in arc_files(tmp_path).items()]
    view.main(["arc", "--tokenizer=bytes", "--n_train=0", "--n_val=0", "--n_show=1", "--show_chars=60", *files])
    out = capsys.readouterr().out
    assert "300 training, 200 validation" in out
    assert re.search(r"gold answers +accuracy 1\.0000 \| accuracy_decoded 1\.0000", out)
    assert re.search(r"options 3 / 4 / 5", out)
    assert re.search(r"\[\.\.\. \d+ characters \.\.\.\]", out)
    config = tmp_path / "c.py"
    options = "tokenizer = 'bytes'\nn_train = 0\nn_val = 20\ntask_args = {'max_prompt_tokens': 400}\n"
    config.write_text(f"task = 'hotpot'\n{options}")
    data = write(tmp_path / "h.json", [hotpot_row(i) for i in range(80)])
    view.main([str(config), f"--data={data}", "--show_chars=0"])
    out = capsys.readouterr().out
    assert re.search(r"left out +\d+ with more to read than max_prompt_tokens=400\n", out)
    assert out.count("Question: Who is") == 3


def test_answers_of_another_row_fill_all_blanks():
    rows = [tasks.Example(str(n), [0] * 9, [1] * n, blanks=list(range(n))) for n in (5, 2)]
    assert view.given(rows[0], rows[1].answer) == [1] * 5
    assert view.given(rows[1], rows[0].answer) == [1] * 2
    free = tasks.Example("free", [0], [1])
    assert view.given(free, rows[0].answer) == [1] * 5
    assert [view.count(n, "token") for n in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]


def test_long_training_sets_are_looked_at_in_part(capsys):
    view.main(["infill", "--tokenizer=bytes", "--n_train=1100", "--n_val=3", "--n_show=0"])
    out = capsys.readouterr().out
    assert re.search(r"(?m)^training .*most of 367 rows\)$", out)  # every third
    assert re.search(r"(?m)^validation .*most\)$", out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sudoko"], "unknown task 'sudoko': choose one of arc,"),
        (["arc", "--order=first"], "--order=first: arc has no such option, it knows data, val_data, question"),
        (["arc", "question=first"], "arc has no such option"),
        (["retrieval", "--n_pairs=many"], "--n_pairs=many: it must be int like 64, got 'many'"),
        (["retrieval", "--n_val"], "--n_val: it must be int like 50, got True"),
        (["sudoku", "--blanks=[4,'8']"], "--blanks=[4,'8']: it must be int | list[int] like 8, got [4, '8']"),
        (["absent.py"], "config file absent.py can't be read"),
    ],
)
def test_view_errors(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        view.main(argv)


# --- types of options
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("infill", {"n_digits": "eight"}, "task infill: n_digits must be int like 8, got 'eight'"),
        ("infill", {"n_digits": True}, "n_digits must be int like 8, got True"),
        ("infill", {"kind": 3}, "kind must be str like 'rightcopy', got 3"),
        ("protein_ss", {"share": "much"}, "share must be float like 0.3, got 'much'"),
        ("sudoku", {"blanks": 4.5}, "blanks must be int | list[int] like 8, got 4.5"),
        ("sudoku", {"blanks": [4, None]}, "blanks must be int | list[int] like 8, got [4, None]"),
        ("permute", {"n_test": "9"}, "n_test must be int | list[int] like 0, got '9'"),
    ],
)
def test_values_of_a_wrong_type_are_named(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tasks.build(name, BYTES, 0, 10, 10, **options)


def test_types_of_options():
    assert tasks.fits(4, int | list[int])
    assert tasks.fits((4, 5), int | list[int])
    assert tasks.fits(None, str | None)
    assert not tasks.fits(True, int | list[int])
    assert not tasks.fits([4, True], int | list[int])
    assert tasks.fits("anything", inspect.Parameter.empty)
    assert type(tasks.typed("x", 2, float, 0.5)) is float
    for name in tasks.names():
        for option in tasks.signature(name).values():
            assert tasks.fits(option.default, option.annotation)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_configs_give_options_of_their_types(path):
    found = runpy.run_path(str(path))
    known = tasks.signature(found["task"]) if "task" in found else {}
    for options in (found.get("task_args", {}), *found.get("more_sets", {}).values()) if known else ():
        for key, value in options.items():
            assert tasks.fits(value, known[key].annotation)


# --- as a command
def test_view_is_a_command_without_torch():
    code = "import sys, tasks.__main__ as t; t.main(sys.argv[1:]); assert not {'torch', 'requests'} & {*sys.modules}"
    out = subprocess.run([sys.executable, "-c", code, "squad", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
    assert "max_prompt_tokens: int = 512" in out.stdout
    out = subprocess.run([sys.executable, "-m", "tasks", "sudoko"], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (1, "")
    assert out.stderr.startswith("error: unknown task 'sudoko': choose one of arc, hotpot, ")
