"""A plugin of pytest: lines of JSON for each test and each warning, and no test is run a second time
where the file has its result.

    RESULTS_OF_TESTS=FILE python3 -m pytest -p bench.resumed_tests -m gpu

A test that was begun and has no result, because it hung or the process was killed, is run behind all others;
those of torch.compile come before it.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

FILE = Path(os.environ.get("RESULTS_OF_TESTS", "tests.jsonl"))


def results(file: Path) -> list[dict[str, Any]]:
    """The lines that were written in full."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut off
            found.append(json.loads(line))
    return found


def outcomes(file: Path) -> dict[str, str]:
    """Test -> "passed", "failed", "skipped", or "begun" where it has not ended."""
    return {line["test"]: line["outcome"] for line in results(file) if "test" in line}


def write(**line: Any) -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    torn = FILE.exists() and not FILE.read_bytes().endswith(b"\n")  # a kill cut off the line before
    with FILE.open("a") as f:
        f.write("\n" * torn + json.dumps(line) + "\n")


def pytest_collection_modifyitems(config: Any, items: list) -> None:
    known = outcomes(FILE)
    ended = [item for item in items if known.get(item.nodeid, "begun") != "begun"]
    config.hook.pytest_deselected(items=ended)
    left = [item for item in items if item not in ended]
    items[:] = sorted(left, key=lambda item: (item.nodeid in known, "compile" in item.nodeid))  # a minute each


def pytest_runtest_logstart(nodeid: str) -> None:
    write(test=nodeid, outcome="begun")


def pytest_runtest_logreport(report: Any) -> None:
    """The call decides, or the first phase that did not pass."""
    if report.when != "call" and report.outcome == "passed":
        return
    text = "" if report.passed else str(report.longrepr[2] if report.skipped else report.longreprtext)[-4000:]
    write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), text=text)


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        write(test=report.nodeid, outcome="failed", text=str(report.longrepr)[-4000:])


def pytest_warning_recorded(warning_message: Any, nodeid: str) -> None:
    write(warning=nodeid, text=str(warning_message.message)[:1000])


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """The status of all tests in the file: also of those that an earlier process ran."""
    if exitstatus in (0, 1, 5):  # passed, some failed, none was left
        session.exitstatus = int("failed" in outcomes(FILE).values())
