"""The layout of the code: which room may import which, what a room may name, and how large a file may be."""

import argparse
import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

MAY_IMPORT = {  # room -> rooms; the two mains may import everything, and nothing imports them
    "utils": {"utils"},
    "data": {"data", "utils"},
    "backbones": {"backbones", "utils"},
    "methods": {"methods", "utils"},
    "evaluation": {"evaluation", "utils"},
    "cli": {"cli", "utils"},
    "runs": {"runs", "backbones", "utils"},
}
ONLY_IN = {  # libraries that one file alone may import
    "torch.distributed": {"utils/distributed.py"},
    "nvidia": {"data/pipelines/dali.py"},
    "triton": {"data/augment_triton.py"},
    "faiss": {"evaluation/kmeans.py"},
    "umap": {"evaluation/pictures.py"},
    "wandb": {"runs/dashboard.py"},
    "torch.utils.tensorboard": {"runs/tensorboard.py"},
    "yaml": {"cli/config.py"},
    "datasets": {"data/arrow.py"},
    "pillow_heif": {"data/images.py"},
}
OWN_WORDS = {  # words that only these rooms may use in a string: commands, and flags that a room defines
    "main_contrastive": set(),
    "main_linear": set(),
    "main_report": set(),
    "--evaluation": {"evaluation", "cli"},  # cli defines the flag; the names of evaluations come from their registry
}
FILES = sorted(p for room in MAY_IMPORT for p in (ROOT / room).rglob("*.py"))
MAINS = sorted(ROOT.glob("main_*.py"))
DEFINE_FLAGS_OF_METHODS = {  # those that several methods share
    "utils/ema.py",
    "utils/heads.py",
    "utils/masked_views.py",
    "utils/nearest_neighbours.py",
    "utils/self_distillation.py",
}
SPECIAL_BUDGETS = {"methods/base.py": 250, "methods/build.py": 150, "main_contrastive.py": 80, "main_linear.py": 100}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def strings(path: Path) -> list[str]:
    return [n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@cache
def own_flags(room: str) -> frozenset[str]:
    """The flags that the methods, or the evaluations, define for themselves."""
    from evaluation.evaluations import EVALUATIONS
    from methods import METHODS

    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    if room == "methods":
        functions = [method.add_args for method in METHODS.values()]
    else:
        functions = [add_flags for evaluation in EVALUATIONS.values() for add_flags in evaluation.flags]
    for add_flags in functions:
        add_flags(parser.add_argument_group())
    return frozenset(option for action in parser._actions for option in action.option_strings)


@cache
def shared_flags() -> frozenset[str]:
    """The flags of the commands that no method and no evaluation owns, though one may have a flag of the same name."""
    from cli.evaluate import _parser as evaluation_parser
    from cli.pretrain import _parser as pretraining_parser
    from data.datasets import DATASETS
    from methods import METHODS

    pretraining = pretraining_parser("simclr", METHODS, DATASETS, {})
    evaluation = evaluation_parser(list(DATASETS), {})
    return frozenset(o for p in (pretraining, evaluation) for a in p._actions for o in a.option_strings)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_room_imports_only_what_it_may(path):
    room = room_of(path)
    for name in imports(path):
        first = name.split(".")[0]
        assert first not in MAY_IMPORT or first in MAY_IMPORT[room], f"{path} imports {name}"
        assert not first.startswith("main_"), f"{path} imports a main"
        assert first not in ("tests", "bench"), f"{path} imports {name}"
        inside = room == "methods" and first == "methods" and path.name != "__init__.py"
        assert not inside or name.startswith("methods.base"), f"{path} imports another method: {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_room_names_no_command_or_flag_of_a_room_above(path):
    room = room_of(path)
    words = {word: rooms for word, rooms in OWN_WORDS.items() if room not in rooms}
    for text in strings(path):
        for word in words:
            assert word not in text, f"{path} names {word}: {text!r}"
        if room not in ("methods", "evaluation") and name_of(path) not in DEFINE_FLAGS_OF_METHODS:
            flags = (own_flags("methods") | own_flags("evaluation")) - (shared_flags() - own_flags("methods"))
            found = [flag for flag in flags if f"{flag} " in f"{text} "]
            assert not found, f"{path} names {found}: {text!r}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) != "evaluation"], ids=name_of)
def test_only_evaluation_names_its_evaluations(path):
    from evaluation.evaluations import EVALUATIONS

    common_words = {"features", "pictures", "linear"}  # an ONNX output, a marker, a mode of interpolation
    assert not (set(strings(path)) & set(EVALUATIONS)) - common_words, path


@pytest.mark.parametrize("path", FILES + MAINS, ids=name_of)
def test_optional_library_is_imported_in_one_file(path):
    for name in imports(path):
        for library, allowed in ONLY_IN.items():
            if name == library or name.startswith(f"{library}."):
                assert name_of(path) in allowed, f"{path} imports {name}"


def test_no_file_edits_the_import_path():
    for path in FILES + MAINS:
        assert "sys.path" not in path.read_text(), path


@pytest.mark.parametrize("path", FILES + MAINS, ids=name_of)
def test_file_and_functions_are_within_their_budgets(path):
    name = name_of(path)
    method = name.startswith("methods/") and path.name not in ("base.py", "__init__.py")
    limit = SPECIAL_BUDGETS.get(name, 120 if method else 400)
    assert len(path.read_text().splitlines()) <= limit, f"{name} is longer than {limit} lines"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{name}: {node.name} is longer than 50 lines"


def test_mains_name_no_method_and_no_evaluation():
    from evaluation.evaluations import EVALUATIONS
    from methods import METHODS

    for path in MAINS:
        code = ast.parse(path.read_text())
        code.body = code.body[1:]  # the docstring shows commands
        source = ast.unparse(code).lower()
        for name in METHODS:
            assert name not in source, f"{path.name} names {name}"
        for name in EVALUATIONS:
            assert f"'{name}'" not in source, f"{path.name} names {name}"


def test_every_module_has_a_test_file_of_its_name():
    """Modules without logic of their own, and those that whole runs exercise, are listed with the reason."""
    without = {
        "utils/batch.py": "a named tuple",
        "evaluation/interfaces.py": "protocols without code",
        "utils/plan.py": "dataclasses, tested by tests/cli/test_plan.py",
        "utils/distributed.py": "tests/prove.py runs every collective on 1, 2 and 3 processes",
        "data/allocator.py": "settings of the C library, without a visible result",
        "cli/flags.py": "tests/cli/test_pretrain.py and test_evaluate.py",
    }
    for path in FILES:
        if path.name != "__init__.py" and name_of(path) not in without:
            test = ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}"
            assert test.exists(), f"{name_of(path)} has no {name_of(test)}"
    for name in without:
        assert (ROOT / name).exists(), f"{name} is listed and does not exist"


def test_nothing_that_a_run_makes_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        assert not name.startswith(("trained_models/", ".venv/", "wandb/", ".coverage")), name
        assert not name.endswith((".ckpt", ".safetensors", ".pt")), name
