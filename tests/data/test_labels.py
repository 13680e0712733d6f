"""Labels of tables, shards and data sets -> positions among their classes."""

import pytest

from data.labels import class_positions, read_labels
from utils.errors import UserError


def test_whole_floats_and_missing_values_are_labels():
    assert class_positions([2.0, None, float("nan"), 10.0, -1], "x") == ([0, -1, -1, 1, -1], ["2", "10"])
    assert class_positions(["02", "1", " 1 "], "x") == ([1, 0, 0], ["1", "2"])
    assert class_positions([True, False], "x") == ([1, 0], ["False", "True"])
    assert class_positions([], "x") == ([], [])


def test_text_is_sorted_and_one_word_makes_all_labels_text():
    assert class_positions(["10", "9", "b", ""], "x") == ([0, 1, 2, -1], ["10", "9", "b"])


def test_names_with_an_underscore_are_text():
    assert class_positions(["1_12", "11_2", "1_12"], "x") == ([1, 0, 1], ["11_2", "1_12"])
    assert class_positions(["1_000", "2"], "x") == ([0, 1], ["1_000", "2"])
    assert read_labels(["1_12|2", "11_2"], "x").sets.classes == ["11_2", "1_12", "2"]


def test_minus_one_is_unlabelled_among_text():
    assert class_positions(["dog", "-1", "cat", -1, " -1 "], "x") == ([1, -1, 0, -1, -1], ["cat", "dog"])
    assert class_positions(["-1", "cat"], "x", ["cat", "dog"]) == ([-1, 0], ["cat", "dog"])
    found = read_labels(["a|b", "-1", "b"], "x").sets
    assert (found.classes, found.member.int().tolist()) == (["a", "b"], [[1, 1], [0, 0], [0, 1]])


def test_labels_of_another_split_refer_to_its_classes():
    assert class_positions([3, 1], "x", ["1", "2", "3"]) == ([2, 0], ["1", "2", "3"])
    with pytest.raises(UserError, match=r"^x: labels that the training images lack \(4\); remove or rename them"):
        class_positions([4], "x", ["1"])


def test_several_labels_are_read_from_text_and_lists():
    for values in (["10|2", "2", "", "9;10"], [[10, 2], [2], None, (9, 10)]):
        found = read_labels(values, "x")
        assert found.sets.classes == ["2", "9", "10"], "whole numbers, by value"
        assert found.sets.member.int().tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
        assert (found.positions, found.classes) == ([-1] * 4, [])
    assert read_labels(["2", "1"], "x") == ([1, 0], ["1", "2"], None)
    with pytest.raises(UserError, match=r"^x: labels that the training images lack \(c\)"):
        read_labels(["a|c"], "x", ["a", "b"])


def test_zeros_and_ones_of_all_classes_are_refused():
    for values in ([[0, 1, 0], [1, 1, 0]], ["0|0|1", "1|0|1"]):
        with pytest.raises(UserError, match="x has 3 zeros and ones per image, not its labels"):
            read_labels(values, "x")
    assert read_labels([[0, 1], [1]], "x").sets.member.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("value", [0.5, "1.5", [1, 2], {"a": 1}, "cat|dog", "cat;dog", -3])
def test_what_is_no_class_is_one_line(value):
    with pytest.raises(UserError, match="or pass --unlabelled$") as e:
        class_positions([1, value] if not isinstance(value, str) or value[0] == "1" else ["cat", value], "x")
    assert len(str(e.value).splitlines()) == 1
