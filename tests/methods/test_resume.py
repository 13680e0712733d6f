"""Every method, stopped within an epoch and built anew, goes on to the bit as if it had not been stopped.

What is here is the state of the method and of its optimizer; tests/application/test_interrupt_and_resume.py stops whole
runs.
"""

import io

import pytest
import torch

from tests.helpers.method_cases import SMALL_VIEWS, every_case
from tests.helpers.runs import equal
from tests.prove import STEPS, Losses, prepare, take_step
from utils.optim import build_scheduler


def built(case, seed):
    """A method with its optimizer and scheduler."""
    torch.manual_seed(seed)
    method = prepare(case, world=1)
    optimizer = method.build_optimizer()
    return method, optimizer, build_scheduler(optimizer, method.plan.schedule)


def go_on(training, steps):
    method, optimizer, scheduler = training
    for step in steps:
        torch.manual_seed(step)  # of dropout, as on_train_batch_start does
        take_step(method, Losses(method), optimizer, scheduler, step)


def resumed(case, training):
    """The training as a checkpoint brings it back, on a method with other initial weights."""
    method, optimizer, scheduler = training
    state = {"state_dict": method.state_dict(), "optimizer": optimizer.state_dict(),
             "lr_schedulers": [scheduler.state_dict()]}  # fmt: skip
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    checkpoint, anew = torch.load(file, weights_only=True), built(case, seed=1)
    anew[0].on_load_checkpoint(checkpoint)
    anew[0].load_state_dict(checkpoint["state_dict"])
    anew[1].load_state_dict(checkpoint["optimizer"])
    anew[2].load_state_dict(checkpoint["lr_schedulers"][0])
    return anew


@pytest.mark.parametrize("case", [case for case in every_case() if SMALL_VIEWS not in case])
def test_method_resumed_within_an_epoch_equals_the_whole_run(case):
    whole = built(case, seed=0)
    go_on(whole, range(STEPS))
    for stop in (1, 3):
        training = built(case, seed=0)
        go_on(training, range(stop))
        training = resumed(case, training)
        go_on(training, range(stop, STEPS))
        assert training[0].optimizer_steps == STEPS
        assert equal(training[0].state_dict(), whole[0].state_dict()), f"stopped after step {stop}"
