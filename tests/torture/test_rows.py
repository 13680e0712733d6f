"""The table of faults: rows, checks, exit code, and the settings that take turns."""

import inspect
import json
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from methods import METHODS
from tests.torture import __main__ as command_line
from tests.torture import hooks
from tests.torture.faults import FAULTS, Fault, flip_bit, killed, signal_at
from tests.torture.launch import Ended
from tests.torture.rows import (
    COLUMNS,
    PIPELINES,
    Row,
    Setting,
    Torture,
    _Attempt,
    differences,
    markdown,
    rotation,
    summary,
)

SETTING = Setting("simclr", "memory", 1)


def kept(name="kill -9"):
    return Row(name, SETTING, "resumed", 3, True, 1.25)


def test_markdown_table_has_a_line_for_each_row():
    wrong = Row("a | b", Setting("byol", "stream", 2), "resumed", 9, False, 2.0, ["9 steps lost", "not equal: x"])
    refusal = Row("damaged", SETTING, "refused", 0, None, 3.0)
    head, rule, *lines = markdown([kept(), wrong, refusal]).splitlines()
    assert head == f"| {' | '.join(COLUMNS)} |"
    assert rule.count("---") == len(COLUMNS)
    assert lines == [
        "| kill -9 | simclr | memory | 1 | resumed | 3 | yes | 1.2 | kept |",
        "| a / b | byol | stream | 2 | resumed | 9 | NO | 2.0 | 9 steps lost; not equal: x |",
        "| damaged | simclr | memory | 1 | refused | 0 | - | 3.0 | kept |",
    ]


def test_summary_has_a_line_for_each_fault():
    wrong = Row("kill -9", Setting("byol", "stream", 2), "survived", 9, False, 2.0, ["9 steps lost"])
    refusal = Row("damaged", SETTING, "refused", 0, None, 3.0)
    assert summary([kept(), wrong, refusal]).splitlines()[2:] == [
        "| kill -9 | 2 | resumed, survived | 9 | 1 of 2 | 1 of 2 |",
        "| damaged | 1 | refused | 0 | - | 1 of 1 |",
    ]


@pytest.mark.parametrize(("broken", "status"), [([], 0), (["not equal: state_dict"], 1)])
def test_command_ends_with_1_where_a_promise_is_broken(tmp_path, monkeypatch, capsys, broken, status):
    def row(self, fault, setting, number):
        return Row(fault.name, setting, "resumed", 0, not broken, 1.0, broken if number == 1 else [])

    monkeypatch.setattr(Torture, "row", row)
    assert command_line.main(["--only", "kill -9", "--each", "1", "--output", str(tmp_path)]) == status
    printed = capsys.readouterr().out
    assert f"{len(broken)} broken" in printed
    rows = json.loads((tmp_path / "table.json").read_text())
    assert len(rows) == sum("kill -9" in fault.name for fault in FAULTS)
    assert rows[0]["method"] in METHODS
    assert [row["broken"] for row in rows].count(broken) == (1 if broken else len(rows))
    assert (tmp_path / "table.md").read_text() in printed
    assert bool(list(tmp_path.glob("work-*"))) == bool(broken), "what a broken promise left is kept to look at"


def test_command_refuses_a_fault_that_it_does_not_know(tmp_path):
    with pytest.raises(SystemExit, match="no fault has meteorite in its name"):
        command_line.main(["--only", "meteorite", "--output", str(tmp_path)])


@pytest.mark.parametrize("each", [1, 3])
def test_rotation_gives_every_fault_a_turn_and_every_method_pipeline_and_number_of_processes(each):
    rows = rotation(FAULTS, each)
    assert {fault.name for fault, _ in rows} == {fault.name for fault in FAULTS}
    assert len(set(map(str, rows))) == len(rows)
    methods = Counter(setting.method for _, setting in rows)
    assert min(methods[name] for name in METHODS) >= 2
    assert {setting.pipeline for _, setting in rows} == set(PIPELINES)
    assert {setting.processes for _, setting in rows} == {1, 2}
    for fault in FAULTS:
        own = [setting for f, setting in rows if f is fault]
        assert len({s.pipeline for s in own}) == min(each, len(set(PIPELINES) & set(fault.pipelines)))


def test_faults_have_names_of_their_own_and_hooks_that_exist():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        for name, arguments in fault.hooks:
            arguments = {k: v for k, v in arguments.items() if k != "step" or name in hooks.WHOLE_RUN}
            inspect.signature((hooks.AT_STEP | hooks.WHOLE_RUN)[name]).bind(**arguments)


def checked(tmp_path, fault, *ended, setting=SETTING):
    """The promises that a row finds broken when its commands end like this."""
    row = Row(fault.name, setting)
    attempt = _Attempt(Torture(tmp_path), fault, setting, tmp_path, [], row)
    return attempt, row, list(ended)


@pytest.mark.parametrize(
    ("statuses", "count"), [([-9, -9], 0), ([-9, 1], 0), ([0, -9], 1), ([-9, 0], 1), ([143, 143], 2)], ids=str
)
def test_status_that_was_not_promised_is_a_broken_promise(tmp_path, statuses, count):
    attempt, row, (ended,) = checked(tmp_path, killed("x", signal_at(3, 9)), Ended(statuses, [""], [], [], 0))
    attempt.check_statuses(ended)
    assert len(row.broken) == count


@pytest.mark.parametrize(
    ("statuses", "printed", "found"),
    [
        ([2], "error: last.ckpt is damaged\n", []),
        ([1], "error: last.ckpt is damaged\n", ["refused with [1]"]),
        ([2], "error: last.ckpt is damaged\nerror: it is\n", ["2 lines of error"]),
        ([2], "error: something else\n", ["does not say"]),
        ([0], "done\n", ["refused with [0]", "0 lines of error", "does not say"]),
    ],
)
def test_refusal_is_one_line_and_status_2(tmp_path, statuses, printed, found):
    attempt, row, (ended,) = checked(tmp_path, Fault("x"), Ended(statuses, [printed], [], [], 0))
    attempt.check_refusal(ended, "is damaged")
    assert len(row.broken) == len(found)
    assert all(text in broken for text, broken in zip(found, row.broken, strict=True))


def write_run(folder, weight=1.0, loss="2.5", speed="100"):
    """The files of a run that are compared."""
    folder.mkdir()
    tensors = {"w": torch.tensor([weight, 2.0])}
    torch.save({"state_dict": tensors, "optimizer_states": [], "lr_schedulers": [], "global_step": 15},
               folder / "last.ckpt")  # fmt: skip
    save_file({"w": torch.tensor([1.0])}, folder / "backbone.safetensors")
    (folder / "metrics.csv").write_text(f"step,loss,images_per_second\n0,{loss},\n4,,{speed}\n")
    return folder


def test_differences_find_the_last_bit_of_a_weight_and_other_numbers(tmp_path):
    whole = write_run(tmp_path / "whole")
    assert differences(whole, write_run(tmp_path / "same", speed="99")) == []
    assert differences(whole, write_run(tmp_path / "weight", weight=1 + 2**-23)) == ["state_dict"]
    other = write_run(tmp_path / "loss", loss="2.6")
    assert differences(whole, other) == ["metrics.csv"]
    assert differences(whole, other, metrics=False) == []
    save_file({"w": torch.tensor([1.5])}, whole / "backbone.safetensors")
    assert differences(whole, other, metrics=False) == ["backbone.safetensors"]


def test_flip_bit_changes_one_bit(tmp_path):
    before = bytes(range(100))
    for place in (0.0, 0.5, 1.0):
        (tmp_path / "f").write_bytes(before)
        flip_bit("f", place)(tmp_path)
        after = (tmp_path / "f").read_bytes()
        assert sum(bin(a ^ b).count("1") for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.slow
def test_fault_that_is_survived_and_promise_that_is_broken_on_purpose(tmp_path):
    torture = Torture(tmp_path)
    fault = killed("kill -9", signal_at(8, 9))
    row = torture.row(fault, SETTING, 0)
    assert row.broken == []
    assert (row.outcome, row.lost, row.equal) == ("resumed", 3, True)
    assert not (tmp_path / "row-0").exists()
    false = torture.row(killed("kill -9", signal_at(8, 9), lost=2), SETTING, 1)
    assert false.broken == ["3 steps lost, promised at most 2"]
    other = torture.row(Fault("another seed", flags=()), Setting("simclr", "memory", 1), 2)
    assert other.broken == []
    torture.more = ["--seed", "1"]  # the run that is compared was trained before, with another seed
    other = torture.row(Fault("another seed"), SETTING, 3)
    assert other.equal is False
    assert "state_dict" in other.broken[0]


@pytest.mark.slow
def test_fork_trains_as_a_process_of_its_own(tmp_path):
    forked, real = Torture(tmp_path / "fork"), Torture(tmp_path / "real", real=True)
    for torture in (forked, real):
        row = torture.row(Fault("nothing"), SETTING, 0)
        assert row.broken == []
    assert differences(forked.whole(SETTING), real.whole(SETTING)) == []
