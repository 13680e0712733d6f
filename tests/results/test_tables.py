"""Tests of the tables of results: every command is one that the parser takes, and every name is there once."""

from collections import Counter
from dataclasses import replace

import pytest

import results.tables as tables
from bench import peers
from cli.evaluate import parse_evaluation
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from results.rows import METHODS as ROWS
from results.tables import EVALUATE, PEER, PRETRAIN, TABLES, check_choice, chosen_runs, chosen_settings, row_settings
from utils.errors import UserError


@pytest.fixture(autouse=True)
def every_search_is_complete(monkeypatch):
    monkeypatch.setattr(tables, "chosen_settings", lambda name: {"--lr": 0.002, "--weight_decay": 0.01})


@pytest.mark.parametrize("table", TABLES)
def test_every_command_is_parsed_and_recorded_under_its_own_name(table):
    runs = list(TABLES[table]())
    commands = [command for run in runs for command in run.commands]
    assert commands
    for command in commands:
        words = list(command.words)
        if command.program == PRETRAIN:
            args = parse_pretraining(words, METHODS, DATASETS)
        elif command.program == PEER:
            args = peers.parse(words)
        else:
            assert command.program == EVALUATE
            args = parse_evaluation(words, list(DATASETS), EVALUATIONS)
        assert (args.output, args.record) == (f"trained_models/{table}", f"results/{table}")
    assert max(Counter(command.run_id for command in commands).values()) == 1


def test_every_method_is_in_the_first_table():
    seen = {dict(zip(run.commands[-2].words, run.commands[-2].words[1:], strict=False))["--method"]
            for run in TABLES["methods"]()}  # fmt: skip
    assert seen == set(METHODS)


def test_needs_of_a_run_are_records_of_other_runs():
    records = {
        f"{table}/{command.run_id}" for table, runs in TABLES.items() for run in runs() for command in run.commands
    }
    needs = {need for runs in TABLES.values() for run in runs() for need in run.needs}
    assert needs
    assert needs <= records


def test_weight_decay_is_the_one_that_was_searched_to_the_end_of_every_run():
    """DINO, iBOT and I-JEPA raise it by default, whatever it began with; one row is there to show what that gives."""
    for run in [*TABLES["search"](), *TABLES["methods"](), *TABLES["claims"]()]:
        if run.name.startswith("dino_rising_decay"):
            continue
        args = parse_pretraining(next(c.words for c in run.commands if c.program == PRETRAIN), METHODS, DATASETS)
        assert args.final_weight_decay in (None, args.weight_decay), run.name


def test_one_run_alone_is_fine_tuned_with_all_labels():
    """It takes 40 minutes, every other one two."""
    commands = [command.words for run in TABLES["labels"]() for command in run.commands if "finetune" in command.words]
    shares = [words[words.index("--label_fraction") + 3] == "1" for words in commands]
    assert sum(shares) == 1
    assert shares[0]


def test_rows_are_chosen_by_patterns_in_the_order_of_the_words():
    chosen = [(run.table, run.name) for run in chosen_runs(["claims:simclr_long-s?", "methods:*-s1", "search"])]
    assert chosen[:3] == [("claims", f"simclr_long-s{seed}") for seed in range(3)]
    assert chosen[3 : 3 + len(ROWS)] == [("methods", f"{name}-s1") for name in ROWS]
    assert {table for table, _ in chosen[3 + len(ROWS) :]} == {"search"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method"], "there is no table 'method' (did you mean methods?); tables are search"),
        (["claims", "methods:simcrl-s0"], "table methods has no row 'simcrl-s0' (did you mean simclr-s0"),
        (["methods:*-s7"], "table methods has no row '*-s7'; `*` stands for any part of a name"),
    ],
)
def test_tables_and_rows_that_there_are_not_are_named(words, said):
    with pytest.raises(UserError) as e:
        check_choice(words)
    assert said in str(e.value)


def test_rows_may_wait_for_the_search_that_runs_before_them(monkeypatch):
    monkeypatch.setattr(tables, "chosen_settings", lambda name: None)
    check_choice(["search", "methods:ibot-s0"])
    check_choice(["search:ibot-*", "methods:ibot-s0"])
    check_choice(["methods"])


def test_settings_are_chosen_by_knn_once_all_were_tried(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    (tmp_path / "search").mkdir()
    scores = {"lr0.001-wd0.01": 30.0, "lr0.002-wd0.01": 33.5, "lr0.004-wd0.01": 31.0, "lr0.002-wd0.1": 33.0}
    for name, knn in scores.items():
        assert chosen_settings("simclr") is None
        record = f'{{"scores": {{"knn_20": {{"value": {knn}}}}}}}'
        (tmp_path / "search" / f"simclr-{name}.json").write_text(record)
    assert chosen_settings("simclr") == {"--lr": 0.002, "--weight_decay": 0.01}
    assert row_settings("simclr", ROWS["simclr"]) == chosen_settings("simclr")
    faster = replace(ROWS["simclr"], rate=0.008)
    assert row_settings("simclr", faster) == {"--lr": 0.008, "--weight_decay": 0.01}
    assert row_settings("simclr", replace(faster, decay=0.1)) == {"--lr": 0.008, "--weight_decay": 0.1}
    assert row_settings("nnclr", replace(ROWS["nnclr"], rate=0.008)) is None
