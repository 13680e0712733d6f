"""Ranges of versions in requirements.txt, and the exact ones in requirements.lock."""

import re
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.helpers.commands import ROOT


def requirements(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def test_every_range_has_a_lowest_version_and_holds_the_locked_one():
    locked = {(r.name, str(r.marker)): next(iter(r.specifier)).version for r in requirements("requirements.lock")}
    for requirement in requirements("requirements.txt"):
        assert {s.operator for s in requirement.specifier} >= {">=", "<"}, f"{requirement} is no range"
        versions = [v for (name, _), v in locked.items() if name == requirement.name]
        assert versions, f"{requirement.name} has no exact version in requirements.lock"
        assert all(requirement.specifier.contains(v) for v in versions), f"{requirement}: {versions} is outside"
    assert {name for name, _ in locked} == {r.name for r in requirements("requirements.txt")}


def test_make_installs_the_locked_versions():
    commands = re.findall(r"pip install .*", (ROOT / "Makefile").read_text())
    assert len(commands) == 3
    assert all("-c requirements.lock" in command for command in commands)


@pytest.mark.parametrize("requirement", requirements("requirements.txt"), ids=lambda r: r.name)
def test_installed_version_is_in_its_range(requirement):
    assert requirement.specifier.contains(version(requirement.name)), f"{requirement} but {version(requirement.name)}"
