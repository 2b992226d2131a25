"""Tables of train_diffusion.py's records: every number from the right arm, set and decoder."""

import json

import pytest

import report
from common.errors import UserError
from test_report import CONTROLS, compared


def record(seed, off, on, start, **changes):
    r = compared(seed, off, on, **changes)
    r["levels"] = {"chance": 0.1, "causal ceiling": 0.25}
    r["start"] = dict(accuracy=start, training_seconds=2.0)
    r["on"]["controls"] = {c: dict(accuracy=i / 10) for i, c in enumerate(CONTROLS, 1)}
    for arm, x in (("off", off), ("on", on)):
        both = lambda x: {how: dict(loss=1.0, accuracy=x + d) for how, d in (("one pass", 0), ("iterative", 0.01))}
        r[arm]["sets"] = {"validation": both(x), "fresh": both(x - 0.02)}
    return r


@pytest.fixture
def files(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        return tmp_path / name

    return write


def test_one_record_has_its_arms_and_its_sets(files):
    path = files("diffusion_copy_5.jsonl", [record(0, 0.2, 0.6, 0.3), record(1, 0.22, 0.7, 0.32)])
    arms, sets = report.table([path]).split("\n\n")
    cells = ["copy_5", "5", "2", "0.250", "0.210 ± 0.014", "**0.650 ± 0.071**", "+44.00 ± 5.66", "0.310 ± 0.014"]
    assert arms.splitlines()[2] == f"| {' | '.join([*cells, '0.100', '0.200', '0.300', '-'])} |"
    assert sets.splitlines()[0] == "| validation rows | decoder | accuracy, off | accuracy, on |"
    assert sets.splitlines()[5] == "| fresh | iterative | 0.200 ± 0.014 | 0.640 ± 0.071 |"


def test_several_records_stand_beside_the_published_figures(files):
    a = files("diffusion_copy_5.jsonl", [record(0, 0.2, 0.6, 0.3)])
    b = files("diffusion_rev_5.jsonl", [record(0, 0.3, 0.5, 0.3)])
    before = files("p.jsonl", [dict(kind="published diffusion", record="diffusion_rev_5", steps=5, off=0.1, on=0.45)])
    lines = report.table([a, b, before]).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("| - |")
    assert lines[3].endswith("| 0.100, 0.450 |")
    unknown = record(0, 0.2, 0.6, 0.3) | dict(levels={"chance": 0.1})
    assert report.table([files("c.jsonl", [unknown])]).splitlines()[2].startswith("| c | 5 | 1 | - | 0.200 |")
    with pytest.raises(UserError, match="no record of train_diffusion"):
        report.diffusion_tables.table([before])


def test_the_start_state_is_a_control_of_the_verdict(files):
    helped = [record(s, 0.2 + s / 100, 0.6 + s / 90, 0.2 + s / 80) for s in range(5)]
    assert report.comparison(files("a.jsonl", helped)).word() == "helps"
    same = [r | dict(start=dict(accuracy=r["on"]["accuracy"] + 0.01, training_seconds=1.0)) for r in helped]
    assert report.comparison(files("b.jsonl", same)).word() == "helps, as does trained start state"


def test_seeds_that_differ_in_more_are_refused(files):
    other = record(1, 0.2, 0.6, 0.3)
    other["config"]["lr"] = 2.0
    with pytest.raises(UserError, match="the runs differ in lr"):
        report.table([files("a.jsonl", [record(0, 0.2, 0.6, 0.3), other])])


def test_the_figure_has_a_line_for_every_arm_and_decoder(files, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = files("diffusion_copy_5.jsonl", [record(0, 0.2, 0.6, 0.3), record(1, 0.3, 0.7, 0.3)])
    fig, axes = plt.subplots()
    report.diffusion_tables.lines_of_sets(axes, path)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        "off, one pass": [pytest.approx(0.23)], "on, one pass": [pytest.approx(0.63)],
        "off, iterative": [pytest.approx(0.24)], "on, iterative": [pytest.approx(0.64)],
    }  # fmt: skip
    assert [t.get_text() for t in axes.get_xticklabels()] == ["fresh"], "the scored set is no point of the curve"
    plt.close(fig)
    report.plot(str(tmp_path / "a.png"), [path])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_of_a_record_without_the_arm_off(files):
    from matplotlib.figure import Figure

    r = record(0, 0.2, 0.6, 0.3)
    del r["off"]
    axes = Figure().subplots()
    report.diffusion_tables.lines_of_sets(axes, files("diffusion_copy_5.jsonl", [r]))
    assert [line.get_label() for line in axes.lines] == ["on, one pass", "on, iterative"]
