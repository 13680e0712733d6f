"""The rooms of the house: who may know whom, and how large a file may be."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"utils", "data", "methods", "evaluation"}
MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "evaluation": {"evaluation", "utils"},
    "methods": {"methods", "utils"},
}
ONLY_IN = {  # libraries that one file alone may import
    "torch.distributed": {"utils/distributed.py"},
    "nvidia": {"data/dali.py"},
    "faiss": {"evaluation/kmeans.py"},
    "umap": {"evaluation/pictures.py"},
    "wandb": {"utils/logs.py"},
}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
MAINS = sorted(ROOT.glob("main_*.py"))


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        first = name.split(".")[0]
        assert first not in ROOMS or first in MAY_IMPORT[room], f"{path} imports {name}"
        assert not first.startswith("main_"), f"{path} imports a main"
        inside = room == "methods" and first == "methods" and path.name != "__init__.py"
        assert not inside or name.startswith("methods.base"), f"{path} imports another method: {name}"


@pytest.mark.parametrize("path", FILES + MAINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_library_that_may_be_absent_is_imported_in_one_place(path):
    for name in imports(path):
        for library, allowed in ONLY_IN.items():
            if name == library or name.startswith(f"{library}."):
                assert str(path.relative_to(ROOT)) in allowed, f"{path} imports {name}"


def test_no_file_edits_the_import_path():
    for path in FILES + MAINS:
        assert "sys.path" not in path.read_text(), path


@pytest.mark.parametrize("path", FILES + MAINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_budgets(path):
    name = str(path.relative_to(ROOT))
    method = name.startswith("methods/") and path.name not in ("base.py", "__init__.py")
    special = {"methods/base.py": 250, "main_contrastive.py": 80, "main_linear.py": 100}
    limit = special.get(name, 120 if method else 400)
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= limit, f"{name} is longer than {limit} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{name}: {node.name} is longer than 50 lines"


def test_mains_name_no_method():
    from methods import METHODS

    for path in MAINS:
        code = ast.parse(path.read_text())
        code.body = code.body[1:]  # the docstring shows commands
        for name in METHODS:
            assert name not in ast.unparse(code).lower(), f"{path.name} names {name}"


def test_nothing_that_a_run_makes_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        assert not name.startswith(("trained_models/", ".venv/", "wandb/")), name
        assert not name.endswith((".ckpt", ".safetensors", ".pt")), name
