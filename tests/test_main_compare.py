"""The command that compares runs."""

import pytest

import main_compare
from tests.helpers.comparisons import write_run
from utils.errors import UserError


def test_comparison_is_printed_and_written_beside_the_first_run(tmp_path, capsys):
    runs = [str(write_run(tmp_path / "runs" / f"r{seed}", seed)) for seed in (0, 1)]
    main_compare.main(runs)
    out = capsys.readouterr().out
    assert "simclr       1.105 ± 0.0071 (2 runs)" in out
    assert f"done: {tmp_path / 'runs' / 'comparison.html'}" in out
    assert "Comparison of 2 runs" in (tmp_path / "runs" / "comparison.html").read_text()
    main_compare.main([*runs, "--html", str(tmp_path / "other.html")])
    assert (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ([], "required: RUN"),
        (["nowhere"], "nowhere is no run"),
        (["nowhere", "--htm", "x"], "unknown argument --htm .did you mean --html"),
    ],
)
def test_mistakes_are_one_line(words, phrase):
    with pytest.raises(UserError, match=phrase) as e:
        main_compare.main(words)
    assert "\n" not in str(e.value)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    run = str(write_run(tmp_path / "r"))
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        main_compare.main([run, "--html", str(tmp_path / "nowhere" / "x.html")])
