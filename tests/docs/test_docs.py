"""README and docs: commands parse, Python blocks run, links resolve, words are the project's."""

import os
import re
import shlex
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_compare
import main_contrastive
from backbones.build import build_backbone, choose_stem
from cli.plan import data_source, describe, resolve
from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS, read_dataset, training_set
from methods import METHODS
from tests.helpers.commands import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 160
OLD_WORDS = (  # of earlier versions, and of no library of the field
    "judge", "pile", "taken for", "dealt out", "set aside", "the same words", "plain view", "clean view",
    "pretrained by", "nobody trained", "stays quiet", "hand on", "take over", "as given", "go on with",
    "pipeline device",
)  # fmt: skip
SHELL_LANGUAGES = ("bash", "sh", "shell", "console")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def parse_evaluating(argv: list[str]) -> Namespace:
    """Parse a command of main_linear.py; the one place that knows that parser's signature."""
    from cli.evaluate import parse_evaluation
    from evaluation.evaluations import EVALUATIONS

    return parse_evaluation(argv, list(DATASETS), EVALUATIONS)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(info string, content) of every fenced block; a block may be indented as part of a list."""
    for match in re.finditer(r"^( *)```([^\n`]*)\n(.*?)^\1```", text, re.M | re.S):
        yield match[2].strip(), re.sub(rf"^{match[1]}", "", match[3], flags=re.M)


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a shell block as lists of words, without comments and assignments of variables in front."""
    for line in re.sub(r"\\\n", " ", block).splitlines():
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            while words and ASSIGNMENT.match(words[0]):
                words = words[1:]
            if words:
                yield words


def shell_commands(page: Path) -> list[list[str]]:
    return [
        words
        for info, content in blocks(page.read_text())
        if info.split(" ")[0] in SHELL_LANGUAGES
        for words in commands(content)
    ]


def check_command(words: list[str]) -> str | None:
    """Check one command; return what it calls, None for a command of another program."""
    mains = ("main_contrastive.py", "main_linear.py", "main_compare.py")
    scripts = [i for i, word in enumerate(words) if word in mains]
    if scripts:
        script, argv = words[scripts[0]], [word for word in words[scripts[0] + 1 :] if word != "--help"]
        if script == "main_linear.py":
            parse_evaluating(argv)
        elif script == "main_compare.py":
            main_compare.parse_comparison(argv)
        elif not argv[0].startswith("-"):  # the other flags of a resumed command are in its run folder
            parse_pretraining(argv, METHODS, DATASETS)
        return script
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        assert not unknown, f"no target {unknown} in Makefile"
        return "make"
    if words[0] in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file(), f"no file {words[1]}"
        return "bash"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page):
    for words in shell_commands(page):
        check_command(words)


def test_commands_are_found():
    called = [check_command(words) for page in PAGES for words in shell_commands(page)]
    assert {"main_contrastive.py", "main_linear.py", "main_compare.py", "make", "bash"} <= set(called)
    readme = [check_command(words) for words in shell_commands(ROOT / "README.md")]
    assert readme.count("main_contrastive.py") >= 2
    assert "main_linear.py" in readme


@pytest.mark.parametrize(
    "words",
    [
        "main_contrastive.py digits resnet18 --no_such_flag",
        "main_linear.py digits resnet18 --no_such_flag",
        "main_compare.py trained_models/RUN --no_such_flag",
        "torchrun --nproc_per_node 2 main_contrastive.py nowhere resnet18",
        "make nothing",
        "bash bash_files/nothing.sh",
    ],
)
def test_commands_with_a_mistake_are_refused(words):
    with pytest.raises((ValueError, AssertionError)):
        check_command(shlex.split(words))


def test_commands_of_a_block():
    block = "# comment\nexport A=1 && python3 x.py a \\\n    --b  # why\nOMP_NUM_THREADS=1 torchrun --n 2 y.py\n"
    assert [" ".join(words) for words in commands(block)] == ["export A=1", "python3 x.py a --b", "torchrun --n 2 y.py"]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder as after a first run: trained_models/RUN of one step on the digits, photos/ with 16 images, and the
    checkout as lookalike/."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "lookalike").symlink_to(ROOT)
    draw_photos(folder / "photos")
    flags = ["--method", "simclr", "--stem", "imagenet", "--precision", "32", "--steps", "1", "--batch_size", "64",
             "--num_workers", "0", "--hidden_mlp", "16", "--proj_dim", "8", "--log_every", "1", "--optimizer", "sgd",
             "--run_id", "RUN", "--output", str(folder / "trained_models")]  # fmt: skip
    main_contrastive.main(["digits", "resnet18", *flags])
    return folder


def draw_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i:02}.jpg")


def python_blocks(page: Path) -> list[str]:
    return [content for info, content in blocks(page.read_text()) if info == "python"]


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page, workspace, monkeypatch):
    """All blocks of a page run one after the other, as a reader would paste them into one session."""
    monkeypatch.chdir(workspace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that a block imports
        exec(compile("\n".join(python_blocks(page)), page.name, "exec"), {"__name__": page.stem})


def test_python_blocks_are_found():
    assert python_blocks(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    text = "".join(re.split(r"```.*?```", page.read_text(), flags=re.S))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), f"{target} does not exist"
            assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    for picture in pictures:
        assert os.path.getsize(picture) < 150_000, picture


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_vocabulary(page):
    text = page.read_text().lower()
    assert [word for word in OLD_WORDS if re.search(rf"\b{word}", text)] == []


def test_architecture_names_what_exists():
    """Every row of the two walks names a function or class, and the file that defines it."""
    rows = re.findall(r"^\| \d+ \| `(\w+)` \| `([\w/]+\.py)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    assert len(rows) >= 20
    for name, file in rows:
        assert re.search(rf"^ *(def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{name} is not in {file}"


def test_printed_plan_is_that_of_its_command():
    """The lines of docs/training.md that do not depend on the machine or the clock."""
    text = (ROOT / "docs" / "training.md").read_text()
    match = re.search(r"<!-- output: python3 main_contrastive.py (.*?) -->\n```\n(.*?)```", text, re.S)
    command, shown = match.groups()
    args = parse_pretraining(shlex.split(command), METHODS, DATASETS)
    data = read_dataset(**data_source(args))
    plan = resolve(args, training_set(args.dataset, data), choose_stem(args.stem, args.backbone, args.large_size))
    method = METHODS[plan.method](method_args(args, METHODS), plan, *build_backbone(plan.backbone, *plan.views.sizes))
    facts = (vars(method.args), method.trainable_parameters(), method.checkpoint_bytes())
    printed = describe(plan, "memory", "", *facts).splitlines()
    of_the_machine = ("  pipeline ", "  run folder ", "  expected end ")
    assert [line for line in printed if not line.startswith(of_the_machine)] == [
        line for line in shown.splitlines() if not line.startswith(of_the_machine)
    ]
