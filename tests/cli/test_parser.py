"""The strict parser."""

import pytest

from cli.parser import Parser, changed_flags, check_used
from utils.errors import UserError


def parser():
    p = Parser()
    p.add_argument("--gpus", nargs="+", type=int, help="GPU ids")
    p.add_argument("--lr", type=float, default=0.1, help="learning rate")
    p.add_argument("--optimizer", choices=["adamw", "sgd"], default="sgd", help="optimizer")
    p.add_argument("--momentum", type=float, default=0.9, help="momentum")
    p.add_argument("--temperature", type=float, default=0.1, help="temperature")
    p.add_argument("--compile", action="store_true", help="compile")
    p.add_argument("--scale", nargs=2, type=float, default=[0.1, 1.0], help="scale")
    return p


def refused(*argv, flags_of_others=()):
    with pytest.raises(UserError) as e:
        parser().parse_strictly(argv, dict(flags_of_others))
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--temprature", "1"], "unknown argument --temprature (did you mean --temperature?)"),
        (["--devices", "1"], "unknown argument --devices (did you mean --gpus?)"),
        (["--learning-rate", "1"], "(did you mean --lr?)"),
        (["--zzz", "1"], "unknown argument --zzz; --help lists all"),
        (["--optimizer", "SGD"], "unknown optimizer 'SGD' (did you mean sgd?); choose one of adamw, sgd"),
        (["--optimizer", "lion"], "unknown optimizer 'lion'; choose one of adamw, sgd"),
        (["--gpus"], "expected at least one argument"),
    ],
)
def test_parse_strictly_suggests_a_near_flag_or_none(argv, message):
    assert message in refused(*argv)


def test_parse_strictly_names_the_method_of_a_flag():
    class WithMethod(Parser):
        pass

    p = WithMethod()
    p.add_argument("--method", default="simclr")
    with pytest.raises(UserError, match="--queue_size is a flag of --method nnclr, not of simclr"):
        p.parse_strictly(["--queue_size", "3"], {"--queue_size": "nnclr"})


def test_typed_flags_hold_values_that_equal_the_default():
    assert parser().typed_flags(["--momentum", "0.9", "--compile"]) == {"momentum", "compile"}
    assert parser().typed_flags([]) == set()


def test_check_used_refuses_a_typed_flag_even_with_its_default():
    rules = ((("momentum",), "--optimizer sgd", lambda a: a.optimizer == "sgd"),)
    argv = ["--optimizer", "adamw", "--momentum", "0.9"]
    args = parser().parse_strictly(argv, {})
    with pytest.raises(UserError, match="--momentum has no effect without --optimizer sgd"):
        check_used(args, parser().typed_flags(argv), rules)
    check_used(args, parser().typed_flags(argv[:2]), rules)


def test_help_shows_every_default_in_plain_form():
    text = " ".join(parser().format_help().split())
    assert "compile (default: off)" in text
    assert "scale (default: 0.1 1.0)" in text
    assert "GPU ids (default: none)" in text


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--compile=true"], "compile", True),
        (["--compile=True", "--compile=False"], "compile", False),
        (["--compile=false", "--compile"], "compile", True),
        (["--no_cache=true"], "cache", False),
        (["--no_cache=false"], "cache", True),
        (["--scale=[0.2, 1.0]"], "scale", [0.2, 1.0]),
        (["--gpus=[0,1]"], "gpus", [0, 1]),
        (["--gpus=[2]"], "gpus", [2]),
        (["--gpus=3"], "gpus", [3]),
    ],
)
def test_switches_and_lists_may_be_written_as_sweeps_write_them(argv, name, value):
    p = parser()
    p.add_argument("--no_cache", dest="cache", action="store_false", help="no cache")
    assert vars(p.parse_strictly(argv, {}))[name] == value
    assert p.typed_flags(argv) == {name}


def test_words_after_a_list_in_brackets_are_not_of_the_list():
    p = parser()
    p.add_argument("dataset")
    args = p.parse_strictly(["--gpus=[0, 1]", "digits", "--lr", "1"], {})
    assert (args.dataset, args.gpus, args.lr) == ("digits", [0, 1], 1.0)


def test_switch_with_another_value_is_refused():
    assert "--compile: got 'maybe', needs true or false" in refused("--compile=maybe")


def test_words_of_typed_values_are_read_as_the_same_values():
    argv = ["--gpus", "0", "1", "--lr=1e-4", "--compile=false", "--optimizer", "adamw"]
    values, unknown = parser().typed_values([*argv, "--other"])
    assert (values, unknown) == (
        {"gpus": ["0", "1"], "lr": "1e-4", "compile": False, "optimizer": "adamw"},
        ["--other"],
    )
    assert parser().typed_values(parser().words_of(values))[0] == values


def test_line_breaks_in_arguments_do_not_break_the_line():
    assert r"unknown argument a\nb; --help" in refused("a\nb")
    assert r"--x\u2028y" in refused("--x\u2028y")
    assert "\n" not in refused("--gpus", "1\n2")


def test_changed_flags_compares_with_defaults_as_they_are_parsed():
    p = parser()
    p.add_argument("--share", type=float, default="0.5")
    defaults = p.flag_defaults()
    assert (defaults["share"], defaults["scale"]) == (0.5, [0.1, 1.0])
    assert "help" not in defaults
    args = p.parse_strictly(["--share", "0.5", "--lr", "0.1", "--scale", "0.1", "0.9"], {})
    assert changed_flags(args, defaults) == {"--scale": ([0.1, 0.9], [0.1, 1.0])}
