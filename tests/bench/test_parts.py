"""Items that are done in turn, cut off, continued and packed."""

import json
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from bench.parts import GRACE, Item, Part
from tests.helpers.commands import ROOT

ABOUT = {"commit": "c0ffee"}
PLENTY = 60 + GRACE


def part(output):
    return Part(output, ABOUT, {})


def append(file, word):
    return ["-c", f"open({str(file)!r}, 'a').write({word!r})"]


def result(output, name):
    return json.loads((output / "results" / "gpu" / f"{name}.json").read_text())


def test_part_does_each_item_once_and_goes_on_after_one_that_fails(tmp_path):
    done = tmp_path / "done.log"
    items = [
        Item("first", [append(done, "1"), append(done, "2")], lambda: {"knn": 80.0}, seed=3),
        Item("fails", [["-c", "print('reason'); raise SystemExit(7)"], append(done, "never")]),
        Item("unreadable", [append(done, "3")], lambda: json.loads("")),
    ]
    failed, left = part(tmp_path).run(items, PLENTY)
    assert ([item.name for item in failed], left) == (["fails", "unreadable"], [])
    assert part(tmp_path).run(items, PLENTY) == (failed, [])
    assert done.read_text() == "123"
    first = result(tmp_path, "first")
    assert (first["scores"], first["seed"], first["commit"], len(first["seconds"])) == ({"knn": 80.0}, 3, "c0ffee", 2)
    assert first["commands"][0] == ["python3", *append(done, "1")]
    assert result(tmp_path, "fails")["exit_status"] == 7
    assert "JSONDecodeError" in result(tmp_path, "unreadable")["error"]
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        assert {"results/gpu/first.json", "logs/fails.log"} <= set(archive.getnames())
        assert archive.extractfile("logs/fails.log").read() == b"reason\n"


def test_part_ends_a_command_when_time_is_over_and_goes_on_with_it(tmp_path):
    """The command may save what it has; its first one is not done again, and seconds add up."""
    done, saved = tmp_path / "done.log", tmp_path / "saved"
    slow = f"""
import pathlib, signal, sys, time
saved = pathlib.Path({str(saved)!r})
if saved.exists():
    sys.exit(0)
def save(*_):
    saved.touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""
    items = [Item("slow", [append(done, "1"), ["-c", slow]], least=0)]
    start = time.monotonic()
    assert part(tmp_path).run(items, 2 + GRACE) == ([], items)
    assert time.monotonic() - start < 2 + GRACE
    assert saved.exists()
    assert part(tmp_path).run(items, PLENTY) == ([], [])
    assert done.read_text() == "1"
    slow = result(tmp_path, "slow")
    assert slow["begun"] == 2
    assert slow["seconds"][1] > 1


def test_part_begins_nothing_that_does_not_fit_and_puts_what_was_cut_off_behind_the_others(tmp_path):
    items = [Item("long", [["-c", ""]], least=1000), Item("fits", [["-c", ""]])]
    assert part(tmp_path).run(items, PLENTY) == ([], items[:1])
    hangs, stays = Item("hangs", [["-c", ""]]), Item("stays", [["-c", ""]], patience=2)
    for name in ("hangs", "stays"):
        (tmp_path / "work" / f"{name}.begun.json").write_text('{"begun": 1, "seconds": []}')
    order = tmp_path / "order.log"
    items = [Item(i.name, [append(order, i.name[0])], patience=i.patience) for i in (hangs, stays, Item("new", []))]
    part(tmp_path).run(items, PLENTY)
    assert order.read_text() == "snh"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_part_that_is_killed_leaves_no_process_and_goes_on(tmp_path, number):
    pid = tmp_path / "pid"
    program = f"""
from pathlib import Path
from bench.parts import Item, Part
from utils.errors import run_cli
wait = "import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
items = [Item("first", [["-c", ""]]), Item("second", [["-c", wait]])]
run_cli(lambda argv: print(Part(Path({str(tmp_path)!r}), {{}}, {{}}).run(items, {PLENTY})))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not alive(int(pid.read_text())))
    begun = json.loads((tmp_path / "work" / "second.begun.json").read_text())
    assert begun["begun"] == 1
    items = [Item("first", [["-c", "raise SystemExit(1)"]]), Item("second", [["-c", ""]])]
    assert part(tmp_path).run(items, PLENTY) == ([], [])
    assert result(tmp_path, "second")["begun"] == 2


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
