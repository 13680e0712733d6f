"""Answer --help without the libraries that only a run needs: importing them takes seconds.

Imported before everything else by a command. Where its arguments ask for help, every library outside Python's own is
replaced by a stand-in, so that the real files of methods and evaluations are imported in a moment and the real parser
prints its real defaults. Sphinx documents modules in this way (autodoc_mock_imports).
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REAL = {"yaml", "PIL"}  # small, and used while modules are imported
OFF = "LOOKALIKE_REAL_HELP"  # variable of the environment: import the libraries for --help too


class _AnythingType(type):
    """The class of a stand-in: every attribute, index and alternative type of it is a stand-in too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class Anything(metaclass=_AnythingType):
    """A stand-in for whatever a library offers: a base class, a type, a decorator, a constant."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        decorates = cls is Anything and len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates else super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (Anything,)


class _Module(ModuleType):
    """A module and package that offers a stand-in for every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for each module that is neither Python's own nor this application's."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        own = (ROOT / top).is_dir() or (ROOT / f"{top}.py").is_file()
        if own or top in REAL or top in sys.stdlib_module_names or top in sys.builtin_module_names:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: a stand-in has no code."""


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command with these arguments prints its help and ends."""
    return bool({"-h", "--help"} & {*argv}) and "--" not in argv and OFF not in os.environ


def _start_again(*error: Any) -> None:
    """Run the same command with the real libraries, where the stand-ins do not suffice."""
    os.environ[OFF] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def install(argv: Sequence[str]) -> bool:
    """Put stand-ins in place if argv asks for help; where one does not suffice, the command starts again without."""
    if not asks_for_help(argv):
        return False
    sys.meta_path.insert(0, StandIns())
    sys.excepthook = _start_again
    return True


if Path(sys.argv[0]).parent.resolve() == ROOT and Path(sys.argv[0]).name.startswith("main_"):
    install(sys.argv[1:])
