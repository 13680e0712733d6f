"""Output that outlives its reader."""

import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT
from utils.output import LastingFile

SCRIPT = """
import os, sys
from utils.output import outlive_readers
outlive_readers()
assert not {stream}.isatty()
for i in range(50_000):
    print("a line", i, file={stream}, flush=i % 100 == 0)
os.write({stream}.fileno(), b"from a library in C")
print("the end", file={other})
"""


@pytest.mark.parametrize(("stream", "other"), [("sys.stdout", "sys.stderr"), ("sys.stderr", "sys.stdout")])
def test_program_goes_on_when_the_reader_of_a_stream_leaves(stream, other):
    descriptors = {"sys.stdout": subprocess.PIPE, "sys.stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(stream=stream, other=other)],
        cwd=ROOT, text=True, stdout=descriptors["sys.stdout"], stderr=descriptors["sys.stderr"],
    )  # fmt: skip
    left, kept = (process.stdout, process.stderr) if stream == "sys.stdout" else (process.stderr, process.stdout)
    assert left.readline() == "a line 0\n"
    left.close()
    assert kept.read() == "the end\n"
    kept.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
def test_streams_of_unbuffered_python_stay_unbuffered(stream):
    """PYTHONUNBUFFERED=1 is usual in containers and on clusters; what was printed must be there after a kill -9."""
    script = f"""
import os, sys
from utils.output import outlive_readers
outlive_readers()
print("a line", "half a", sep="\\n", end="", file={stream})
os._exit(0)
"""
    ended = subprocess.run([sys.executable, "-u", "-c", script], cwd=ROOT, text=True, capture_output=True)
    assert ended.stdout + ended.stderr == "a line\nhalf a"


def test_other_errors_of_a_stream_are_errors(tmp_path):
    (tmp_path / "file").touch()
    read_only = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        LastingFile(read_only, "w", closefd=False).write(b"x")
    os.close(read_only)
