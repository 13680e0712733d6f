"""The tables of results: which runs each is made of, in the order of their value, and where the ledger has them."""

import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.on_gpu import recipe
from results.rows import (
    CLAIMS,
    DATA,
    EPOCHS,
    IMAGES,
    METHODS,
    MODELS,
    NETWORKS,
    SEARCH_IMAGES,
    SEARCHED,
    TRAINING,
    TRANSFER,
    Row,
    record_flags,
    with_short_queue,
)
from utils.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results"
PRETRAIN, EVALUATE, PEER = "main_contrastive.py", "main_linear.py", "-m bench.peers"
SEEDS = (0, 1, 2)
FINETUNED = "--evaluation finetune --epochs 50 --optimizer adamw --lr 0.002 --weight_decay 0.01 --batch_size 128"
WEIGHTS = "--num_workers 1 --pretrained_feature_extractor"
FIRST = next(iter(METHODS))  # beside it raw pixels and the untrained network are evaluated in every table
WITH_BASELINES = (FIRST, "simclr_vit")  # rows of METHODS that are evaluated beside the untrained network of theirs
LINEAR = "--evaluation linear --epochs 10"
GPU_EPOCHS = 100
RECIPES = {"supcon": "simclr_supervised"}  # row of METHODS -> its recipe in bash_files, where that has another name
PEER_METHODS = ("simclr", "nnclr", "byol", "barlow_twins", "vicreg")
PEERS = {"lightly": "Lightly", "solo-learn": "solo-learn's settings"}
PEER_VARIANTS = {  # method -> rows of METHODS that stand beside the peers too
    "simclr": {
        "simclr_lightly": "Lookalike, Lightly's settings",
        "simclr_lightly_exactly": "Lookalike, Lightly's settings, decay of norms",
    },
    "nnclr": {"nnclr_tuned": "Lookalike, rate 0.008, 2 layers"},
    "byol": {
        "byol_lightly": "Lookalike, Lightly's settings",
        "byol_lightly_exactly": "Lookalike, Lightly's settings, constant tau, decay of norms",
    },
}


@dataclass(frozen=True)
class Command:
    """A command of a run: program, its arguments, and the records that it leaves."""

    program: str
    words: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """Name of the run folder and of the record."""
        return self.words[self.words.index("--run_id") + 1]

    @property
    def records(self) -> tuple[str, ...]:
        """Names of the records, and of the run folders, that the command leaves: a peer is trained and evaluated."""
        return (self.run_id, f"{self.run_id}-evaluated") if self.program == PEER else (self.run_id,)


@dataclass(frozen=True)
class Run:
    """One run of a table: its commands in their order. needs: "table/record" of what must be there before."""

    table: str
    name: str
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()

    def is_done(self) -> bool:
        """Whether the ledger has a record of every command."""
        return all(read_record(self.table, name) for command in self.commands for name in command.records)


def command(program: str, arguments: str) -> Command:
    """A command from the text of its arguments."""
    return Command(program, tuple(shlex.split(arguments)))


def read_record(table: str, name: str) -> dict[str, Any] | None:
    """The record of a command, or None where the ledger has none."""
    path = LEDGER / table / f"{name}.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def chosen_settings(name: str) -> Mapping[str, float] | None:
    """The searched flags of a method with the best kNN on held-out images; None before all of them were tried."""
    tried = []
    for settings in zip(*SEARCHED.values(), strict=True):
        record = read_record("search", f"{name}-lr{settings[0]:g}-wd{settings[1]:g}")
        if record is None:
            return None
        tried.append((record["scores"]["knn_20"]["value"], settings))
    return dict(zip(SEARCHED, max(tried)[1], strict=True))


def row_settings(name: str, row: Row) -> Mapping[str, float] | None:
    """Rate and weight decay of a row of METHODS or CLAIMS; None before the search that they come from is complete."""
    found = chosen_settings(row.settings or name)
    own = {"--lr": row.rate, "--weight_decay": row.decay}
    return found and {**found, **{flag: value for flag, value in own.items() if value}}


def settings_flags(settings: Mapping[str, float], row: Row) -> str:
    """The flags of rate and weight decay, with one that keeps the decay constant where the row asks for that."""
    flags = [f"{flag} {value:g}" for flag, value in settings.items()]
    return " ".join(flags + [f"--final_weight_decay {settings['--weight_decay']:g}"] * row.constant_decay)


def search_runs() -> Iterator[Run]:
    """The search of rate and decay: the same settings for every method, fewer images and epochs, held-out images."""
    for name, row in METHODS.items():
        if row.settings:
            continue
        flags = with_short_queue(row.flags)
        for settings in zip(*SEARCHED.values(), strict=True):
            chosen = settings_flags(dict(zip(SEARCHED, settings, strict=True)), row)
            run_id = f"{name}-lr{settings[0]:g}-wd{settings[1]:g}"
            words = (
                f"cifar10 {row.network} {SEARCH_IMAGES} {flags} --epochs 8 --warmup_epochs 1 {TRAINING} {chosen} "
                f"--knn_every 8 {record_flags('search', run_id)}"
            )
            yield Run("search", run_id, (command(PRETRAIN, words),))


def network_runs() -> Iterator[Run]:
    """SimCLR with candidates for the network of all tables, on the images of the search."""
    for name, network in NETWORKS.items():
        words = (
            f"cifar10 {network} {SEARCH_IMAGES} {METHODS['simclr'].flags} --epochs 8 --warmup_epochs 1 {TRAINING} "
            f"--lr 0.002 --weight_decay 0.01 --knn_every 8 {record_flags('networks', name)}"
        )
        yield Run("networks", name, (command(PRETRAIN, words),))


def pretraining(table: str, images: str, name: str, row: Row, seed: int) -> str | None:
    """Arguments that pretrain a row of METHODS or CLAIMS; None before the search of its rate and decay is complete."""
    found = row_settings(name, row)
    if found is None:
        return None
    settings = settings_flags(found, row)
    return (
        f"cifar10 {row.network} {images} {TRAINING} {row.flags} --epochs {row.epochs} --warmup_epochs 1 {settings} "
        f"--knn_every {row.epochs} --seed {seed} {record_flags(table, f'{name}-s{seed}')}"
    )


def run_of(table: str, name: str, row: Row, seed: int, *commands: tuple[str, str]) -> Run:
    """A row of METHODS or CLAIMS with a seed: what it needs, what runs before, and (program, arguments) of its own."""
    whole = (*((EVALUATE, arguments) for arguments in row.before), *commands)
    needs = tuple(need.format(seed=seed) for need in row.needs)
    return Run(table, f"{name}-s{seed}", tuple(command(p, text.format(seed=seed)) for p, text in whole), needs)


def method_runs() -> Iterator[Run]:
    """Every method with one seed, then with the next one; rows whose search is not complete are left out."""
    for seed, (name, row) in itertools.product(SEEDS, METHODS.items()):
        run_id = f"{name}-s{seed}"
        pretrain = pretraining("methods", IMAGES, name, row, seed)
        baselines = "--baselines " if name in WITH_BASELINES else ""  # the same for all rows of a network, and slow
        evaluate = (
            f"cifar10 {row.network} {IMAGES} {WEIGHTS} {MODELS}/methods/{run_id} "
            f"--evaluation knn logistic --label_fraction 0.01 0.1 1 {baselines}--seed {seed} "
            f"{record_flags('methods', f'{run_id}-evaluated')}"
        )
        if pretrain is not None:
            yield run_of("methods", name, row, seed, (PRETRAIN, pretrain), (EVALUATE, evaluate))


def claim_runs() -> Iterator[Run]:
    """What papers claim, on the images of the search: short enough for three seeds each."""
    for seed, (name, row) in itertools.product(SEEDS, CLAIMS.items()):
        pretrain = pretraining("claims", SEARCH_IMAGES, name, row, seed)
        if pretrain is not None:
            yield run_of("claims", name, row, seed, (PRETRAIN, pretrain))


def label_runs() -> Iterator[Run]:
    """The networks of METHODS with SGD: a linear classifier, and fine-tuned on shares of the labels.

    The first seed of the first row also has all labels, with and without pretraining: 40 minutes, so no other run has.
    """
    for seed in SEEDS:
        for name, row in METHODS.items():
            run_id = f"{name}-s{seed}"
            shared = f"cifar10 {row.network} {IMAGES} {WEIGHTS} {MODELS}/methods/{run_id} --seed {seed}"
            first = name == FIRST
            labels = "0.01 0.1 1" if first and seed == SEEDS[0] else "0.01 0.1"
            flags = f"{FINETUNED} --label_fraction {labels}{' --baselines' if first else ''}"
            finetuned = f"{shared} {flags} {record_flags('labels', f'{run_id}-finetuned')}"
            linear = f"{shared} {LINEAR} {record_flags('labels', f'{run_id}-linear')}"
            commands = (command(EVALUATE, finetuned), command(EVALUATE, linear))
            yield Run("labels", run_id, commands, (f"methods/{run_id}",))


def transfer_runs() -> Iterator[Run]:
    """The networks of METHODS, frozen, on the images of TRANSFER."""
    for seed, (name, row) in itertools.product(SEEDS, METHODS.items()):
        for images, (flags, _) in TRANSFER.items():
            run_id = f"{name}-{images}-s{seed}"
            words = (
                f"{flags.format(network=row.network)} {WEIGHTS} {MODELS}/methods/{name}-s{seed} --large_size 32 "
                f"--seed {seed} "
                f"{'--baselines ' if name == FIRST else ''}{record_flags('transfer', run_id)}"
            )
            yield Run("transfer", run_id, (command(EVALUATE, words),), (f"methods/{name}-s{seed}",))


def peer_runs() -> Iterator[Run]:
    """Lightly's methods and solo-learn's settings with the images, network, length and seed of METHODS."""
    for peer in PEERS:
        for name in PEER_METHODS:
            run_id = f"{peer}-{name}-s0"
            words = f"{name} --peer {peer} --epochs {EPOCHS} --data_folder {DATA} {record_flags('peers', run_id)}"
            yield Run("peers", run_id, (command(PEER, words),))


def gpu_runs() -> Iterator[Run]:
    """The recipes in bash_files/cifar10 that are one command, with 100 epochs; for a CUDA device.

    They train a ResNet-18, and a small vision transformer for the methods that need one.
    """
    for name in METHODS:
        source = RECIPES.get(name, name)
        file = ROOT / "bash_files" / "cifar10" / f"{source}.sh"
        text = file.read_text() if file.is_file() else ""
        if text.count("\npython3 ") != 1 or "TEACHER" in text:
            continue
        words, run_id = recipe(source), f"{name}-s0"
        words[words.index("--epochs") + 1] = str(GPU_EPOCHS)
        pretrain = (
            f"{shlex.join(words)} {IMAGES} --accelerator cuda --knn_every {GPU_EPOCHS} {record_flags('gpu', run_id)}"
        )
        evaluate = (
            f"cifar10 {words[1]} {IMAGES} {WEIGHTS} {MODELS}/gpu/{run_id} --evaluation knn logistic "
            f"{'--baselines ' if name == FIRST else ''}{record_flags('gpu', f'{run_id}-evaluated')}"
        )
        yield Run("gpu", run_id, (command(PRETRAIN, pretrain), command(EVALUATE, evaluate)))


TABLES: dict[str, Callable[[], Iterator[Run]]] = {
    "search": search_runs,
    "networks": network_runs,
    "methods": method_runs,
    "labels": label_runs,
    "claims": claim_runs,
    "transfer": transfer_runs,
    "peers": peer_runs,
    "gpu": gpu_runs,
}


def chosen_runs(words: Iterable[str]) -> Iterator[Run]:
    """The runs of tables in the order of the words: each is a table, or "table:pattern" for the rows that it matches.

    Patterns are those of a shell ("methods:*-s1").
    """
    for word in words:
        table, _, pattern = word.partition(":")
        yield from (run for run in TABLES[table]() if fnmatchcase(run.name, pattern or "*"))


def check_choice(words: Sequence[str]) -> None:
    """A table that there is not, or a pattern without a row, is a UserError.

    Methods whose search is not complete have no rows yet; with the search among the words they may come.
    """
    for word in words:
        table, _, pattern = word.partition(":")
        if table not in TABLES:
            raise UserError(f"there is no table {table!r}{did_you_mean(table, TABLES)}; tables are {', '.join(TABLES)}")
        searches = any(other.partition(":")[0] == "search" for other in words)
        if pattern and not any(chosen_runs([word])) and not searches:
            near = did_you_mean(pattern, [run.name for run in TABLES[table]()])
            raise UserError(f"table {table} has no row {pattern!r}{near}; `*` stands for any part of a name")
