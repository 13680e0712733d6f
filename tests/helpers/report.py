"""Run folders and pages of reports for tests."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch

from evaluation.report_data import Cell, Grid, write_grid, write_points
from tests.helpers.commands import TINY, plan_of
from tests.helpers.images import class_folders, read
from utils.provenance import provenance

VOID = {"meta", "link", "img", "br", "input"}
NASTY = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The elements of a page: (tag, attributes) in their order, the text of each tag, and whether all are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, text):
        self.texts.append((self._open[-1] if self._open else "", text))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags):
        return " ".join(" ".join(text.split()) for tag, text in self.texts if not tags or tag in tags)

    def data(self):
        """The numbers that the page's program reads."""
        return json.loads(self.texts[[tag for tag, _ in self.texts].index("script")][1])


def run_folder(folder: Path, name: str = "r", points: int = 30, steps: int = 60) -> Path:
    """A run folder as a pretraining leaves it, with a grid and points of the digits; `name` is that of the folder."""
    run = folder / name
    run.mkdir()
    _, plan = plan_of("simclr")
    argv = [*TINY, "--epochs", "10", "--run_id", name]
    flags = {"dataset": "digits", "backbone": TINY[1], "epochs": 10, "output": "trained_models", "run_id": name}
    content = {"argv": argv, "flags": flags, "plan": dataclasses.asdict(plan)} | provenance()
    (run / "args.json").write_text(json.dumps(content))
    lines = [f"{step},{2 - step / 100},{50 + step / 10 if step % 20 == 19 else ''},{0.1}" for step in range(steps)]
    (run / "metrics.csv").write_text("\n".join(["step,loss,knn_20,lr", *lines]) + "\n")
    image = np.full((8, 8, 3), 120, np.uint8)
    rows = [[Cell(image, "a.png", "cat"), Cell(image, "b.png", "cat", True), Cell(image, "c.png", "dog", False)]]
    write_grid(run / "neighbours.json", Grid(rows, ["cat"], {0: "query", 1: "nearest"}))
    flat = np.random.default_rng(0).normal(size=(points, 2))
    train = read().train
    write_points(run / "embedding.json", flat, torch.arange(points) % 3, train, range(points), ["x", "y", "z"], "PCA")
    return run


def nasty_images(root: Path) -> Path:
    """Class folders whose names and files would run in a careless page."""
    class_folders(root, classes=2, each=20)
    (root / "c0").rename(root / "<img src=x onerror=alert(1)>")
    (root / "c1").rename(root / '"><script>alert(2)<')
    return root
