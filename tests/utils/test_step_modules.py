"""State that belongs to optimizer steps: running means and scheduled values."""

import pytest
import torch

from utils.step_modules import RunningMean, ScheduledValue, cosine, linear_warmup


def test_running_mean_moves_once_per_step_by_the_mean_of_its_batches():
    mean = RunningMean((2,), 0.9)
    mean.push(torch.tensor([1.0, 2.0]))
    mean.push(torch.tensor([3.0, 6.0]))
    assert mean.value.tolist() == [0, 0]
    mean.after_optimizer_step(0.0)
    torch.testing.assert_close(mean.value, torch.tensor([0.2, 0.4]))
    mean.after_optimizer_step(0.0)
    torch.testing.assert_close(mean.value, torch.tensor([0.2, 0.4]))


def test_running_mean_forgets_what_a_skipped_step_pushed():
    mean = RunningMean((1,), 0.5)
    mean.push(torch.tensor([8.0]))
    mean.discard()
    mean.after_optimizer_step(0.0)
    assert mean.value.tolist() == [0]


def pushed(rank, world):
    mean = RunningMean((1,), 0.0)
    mean.push(torch.tensor([float(rank)]))
    mean.after_optimizer_step(0.0)
    return mean.value


def test_running_mean_is_that_of_all_ranks(ranks):
    assert [value.item() for value in ranks(3).run(pushed)] == [1.0] * 3


def test_scheduled_value_is_a_tensor_and_a_number_and_is_not_saved():
    value = ScheduledValue(linear_warmup(0.04, 0.07, 30))
    assert value.number == 0.04
    value.update(15.0, 0.1)
    assert value.number == pytest.approx(0.055)
    assert value.value.item() == pytest.approx(0.055)
    value.update(40.0, 0.4)
    assert value.number == 0.07
    assert not value.state_dict()


def test_scheduled_value_counts_epochs_as_integers():
    epoch = ScheduledValue(lambda epoch, progress: int(epoch), dtype=torch.long)
    epoch.update(2.9, 0.5)
    assert epoch.value.dtype == torch.long
    assert epoch.value.item() == epoch.number == 2


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.996), (0.5, 0.998), (1, 1.0)])
def test_cosine_goes_from_the_first_to_the_last_value(progress, expected):
    assert cosine(0.996, 1.0)(3.0, progress) == pytest.approx(expected)
