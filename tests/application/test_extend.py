"""A run that is made longer: equal to a longer one where it must be, interrupted or not."""

import shutil

import pytest

import main_contrastive
from tests.helpers.commands import words
from tests.helpers.runs import assert_same_run, checkpoint, equal, interrupt_at, refused
from utils.errors import Interrupted
from utils.files import read_json, read_metrics
from utils.optim import ScheduleConfig, lr_factor

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        pytest.param(["--epochs", "1"], ["--epochs", "2"], marks=pytest.mark.slow),
        (["--steps", "7"], ["--steps", "12"]),
        pytest.param(["--steps", "4"], ["--epochs", "2"], marks=pytest.mark.slow),
    ],
)
def test_finished_run_that_is_extended_equals_a_long_one_where_the_rate_is_constant(tmp_path, few, short, long):
    argv = ["custom", *words("nnclr", tmp_path, *few, "--scheduler", "none", "--knn_every", "0")[1:]]
    main_contrastive.main([*argv, *long, "--run_id", "long"])
    main_contrastive.main([*argv, *short, "--run_id", "r"])
    assert "--extend_schedule" in refused(["--resume", str(tmp_path / "r"), *long])
    main_contrastive.main(["--resume", str(tmp_path / "r"), *long, "--extend_schedule", "constant"])
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert equal(checkpoint(tmp_path / "long")[part], checkpoint(tmp_path / "r")[part]), part
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / run / "metrics.csv") if row["loss"]]
        for run in ("long", "r")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("rule", ["stretch", pytest.param("constant", marks=pytest.mark.slow)])
def test_extended_and_interrupted_run_equals_one_that_is_extended_in_one_go(tmp_path, monkeypatch, few, rule):
    argv = ["custom", *words("byol", tmp_path, *few, "--run_id", "a", "--epochs", "2", "--resume", "auto")[1:]]
    main_contrastive.main(argv)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    longer = ["--epochs", "4", "--extend_schedule", rule]
    main_contrastive.main([*argv, *longer])
    with monkeypatch.context() as m:
        interrupt_at(m, 13)
        with pytest.raises(Interrupted):
            main_contrastive.main(["--resume", str(tmp_path / "b"), *longer])
    main_contrastive.main(["--resume", str(tmp_path / "b")])
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert checkpoint(tmp_path / "a")["global_step"] == 20
    assert read_json(tmp_path / "a" / "args.json")["extensions"][0]["total_steps"] == [10, 20]
    first, second = (lr_factor(ScheduleConfig("warmup_cosine", total, 5, 1)) for total in (10, 20))
    then = [second(s) if rule == "stretch" else first(9) for s in range(10, 20)]
    rates = {int(row["step"]): float(row["lr"]) for row in read_metrics(tmp_path / "a" / "metrics.csv") if row["lr"]}
    peak = rates[0]  # one step of warm-up
    assert [rates[s] / peak for s in range(20)] == pytest.approx([*map(first, range(10)), *then], rel=1e-6)
    assert "not shortened" in refused([*argv, "--extend_schedule", rule])
