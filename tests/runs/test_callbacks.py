"""Callbacks without a Trainer."""

from types import SimpleNamespace

import pytest
import torch

from runs.callbacks import ExpectedEnd, LogFirstAndLastStep, ProgressBar, Throughput


def trainer(step, **more):
    return SimpleNamespace(**{"global_step": step, "is_global_zero": True, "logged_metrics": {}} | more)


def test_progress_bar_shows_a_knn_accuracy_only_in_the_epoch_that_it_belongs_to(capsys):
    schedule, logging = SimpleNamespace(total_epochs=5), SimpleNamespace(log_every=1, knn_every=2)
    callback = ProgressBar(schedule, logging, 8)
    metrics = {"loss": torch.tensor(1.0), "knn_20": torch.tensor(50.0)}
    for epoch in range(5):
        callback.on_train_epoch_end(trainer(epoch, current_epoch=epoch, logged_metrics=metrics), None)
    lines = capsys.readouterr().out.splitlines()
    assert ["kNN 20 50.0 %" in line for line in lines] == [False, True, False, True, True]
    assert all("loss 1.000" in line for line in lines)


def test_expected_end_is_printed_once_from_the_speed_so_far(monkeypatch, capsys):
    now = 1_000_000.0
    monkeypatch.setattr("runs.callbacks.time.time", lambda: now)
    callback = ExpectedEnd(total_steps=1000)
    for step in range(1, 60):
        callback.on_train_batch_end(trainer(step), None)
        now += 9.0
    printed = capsys.readouterr().out
    assert printed.count("expected end") == 1
    assert "in 2 h 27 min" in printed  # (1000 - 21) steps of 9 s, printed after step 21


def test_throughput_counts_source_images_and_waiting_time(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 4.0, 5.0, 7.0])  # arrives, ends, arrives, ends, arrives, ends
    monkeypatch.setattr("runs.callbacks.time.perf_counter", lambda: next(clock))
    logged = {}
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda values, **_: logged.update(values))
    callback, batch = Throughput(processes=2), SimpleNamespace(index=torch.arange(5))
    callback.on_train_epoch_start(None, module)
    for number in range(3):
        callback.on_train_batch_start(None, module, batch, number)
        callback.on_train_batch_end(None, module, None, batch, number)
    callback.on_train_epoch_end(None, module)
    assert logged["images_per_second"] == pytest.approx(2 * 10 / 6)
    assert logged["data_wait_fraction"] == pytest.approx(2 / 6)


def test_run_without_a_terminal_prints_a_line_a_minute(monkeypatch, capsys):
    now = 1_000.0
    monkeypatch.setattr("runs.callbacks.time.monotonic", lambda: now)
    schedule, logging = SimpleNamespace(total_steps=100, total_epochs=1), SimpleNamespace(log_every=10, knn_every=0)
    callback = ProgressBar(schedule, logging, global_batch=30)
    for step in range(1, 13):
        callback.on_train_batch_end(trainer(step, logged_metrics={"loss": torch.tensor(2.5), "lr": 1.0}), None)
        now += 15.0
    assert capsys.readouterr().out.splitlines() == [
        "step 5/100  loss 2.500  2 images/s  24 min left",
        "step 9/100  loss 2.500  2 images/s  23 min left",
    ]


def test_other_processes_print_no_lines(monkeypatch, capsys):
    now = 1_000.0
    monkeypatch.setattr("runs.callbacks.time.monotonic", lambda: now)
    callback = ProgressBar(SimpleNamespace(total_steps=9), SimpleNamespace(log_every=1, knn_every=0), 8)
    for step in range(1, 4):
        callback.on_train_batch_end(trainer(step, is_global_zero=False), None)
        now += 100
    assert capsys.readouterr().out == ""


def test_first_and_last_step_are_rows_too():
    callback = LogFirstAndLastStep(log_every=4, total_steps=10)
    rows = []
    for step in range(1, 11):
        run = trainer(step - 1)
        callback.on_train_batch_start(run, None, None, 0)
        rows += [step] * (step % run.log_every_n_steps == 0)
    assert rows == [1, 4, 8, 10]
