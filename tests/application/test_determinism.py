"""The same seed gives the same bits on the CPU, for every method and pipeline and any number of workers; and what
--deterministic switches on."""

import os
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import main_contrastive
from data.pipelines.choose import build_pipeline
from data.views import view_specs
from methods import METHODS
from methods.simclr import SimCLR
from tests.helpers.checkpoints import new_network
from tests.helpers.commands import construct, plan_of, words
from tests.helpers.method_cases import backbone_of
from tests.helpers.networks import Flat
from tests.helpers.pipelines import EVERY_PIPELINE, build, digits_for, equal_views, training_batches
from tests.helpers.runs import assert_same_run, equal, refused

STEPS, SIZE = 2, 32


def trained(method, pipeline="memory", workers=0, network=None, seed=0):
    """All tensors of a method after some optimizer steps, whatever random numbers were drawn before."""
    for spoil in (torch.manual_seed, np.random.seed, random.seed):
        spoil(int.from_bytes(os.urandom(3), "little"))
    settings, plan = plan_of(method, "--batch_size", "16", "--seed", str(seed))
    pl.seed_everything(plan.seed, verbose=False)
    network = network() if network else backbone_of(method, new_network, plan.views.large_size, patch=8, dim=96)
    model = construct(settings, plan, network, 6 if isinstance(network, Flat) else 96)
    optimizer = model.configure_optimizers()["optimizer"]
    specs = view_specs(plan.views, model.large_views)
    module = build_pipeline(pipeline, digits_for(pipeline), specs, 16, plan.seed, workers, None, "cpu")
    for batch in training_batches(module, at_most=STEPS):
        losses = model.compute_losses(batch)
        (losses["loss"] + losses["probe_loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step()
    return model.state_dict()


def flat():
    """A network without convolutions, which is enough where the images matter."""
    return Flat(3 * SIZE**2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_to_the_same_bits_from_the_same_seed(method):
    first = trained(method)
    assert all(v.isfinite().all() for v in first.values())
    assert equal(first, trained(method))


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("pipeline", EVERY_PIPELINE)
def test_every_pipeline_trains_to_the_same_bits_with_any_number_of_workers(pipeline):
    first = trained("simclr", pipeline, network=flat)
    for workers in (1, 3):
        assert equal(first, trained("simclr", pipeline, workers, flat)), workers


def test_another_seed_trains_to_other_bits():
    assert not equal(trained("simclr", network=flat), trained("simclr", network=flat, seed=1))


@pytest.mark.parametrize("pipeline", EVERY_PIPELINE)
def test_views_do_not_depend_on_the_number_of_torchs_threads(pipeline):
    """The training itself does: see "Equal bits" in docs/training.md."""
    threads = torch.get_num_threads()
    try:
        batches = []
        for n in (1, 2):
            torch.set_num_threads(n)
            batches.append(list(training_batches(build(pipeline, batch_size=4), at_most=1)))
    finally:
        torch.set_num_threads(threads)
    assert len(batches[0]) == 1
    assert all(map(equal_views, *batches))


@pytest.mark.usefixtures("no_embedding")
def test_deterministic_is_on_while_the_run_trains_and_refuses_in_one_line_what_it_cannot_repeat(
    tmp_path, few, monkeypatch, capsys
):
    switches, original = [], SimCLR.training_loss

    def state():
        cudnn = torch.backends.cudnn
        on = torch.are_deterministic_algorithms_enabled()
        return on, cudnn.deterministic, cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    def training_loss(self, feats, batch):
        switches.append(state())
        if len(switches) == 2:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # torch has no deterministic algorithm for it
        return original(self, feats, batch)

    monkeypatch.setattr(SimCLR, "training_loss", training_loss)
    before = state()
    message = refused(["custom", *words("simclr", tmp_path, *few, "--deterministic", "--run_id", "r")[1:]])
    assert message.startswith("--deterministic: torch has no deterministic algorithm for put_ on this device; choose")
    assert switches == [(True, True, False, ":4096:8")] * 2
    assert state() == before != switches[0]
    assert "precision 32 (from the flag), deterministic algorithms" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.usefixtures("no_embedding")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pipeline", EVERY_PIPELINE)
def test_whole_run_of_every_method_and_pipeline_equals_its_repetition(tmp_path, few, method, pipeline):
    """With another number of workers, and with --deterministic, which changes nothing on a CPU."""
    argv = ["custom", *words(method, tmp_path, *few, "--pipeline", pipeline)[1:]]
    main_contrastive.main([*argv, "--run_id", "once"])
    main_contrastive.main([*argv, "--run_id", "again", "--num_workers", "2", "--deterministic"])
    assert_same_run(tmp_path / "once", tmp_path / "again")
