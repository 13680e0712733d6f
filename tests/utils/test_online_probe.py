"""The online probe: its gradient, its random numbers, its counts."""

import torch

from utils.online_probe import OnlineProbe


def test_online_probe_draws_no_number_of_the_method():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    OnlineProbe(6, 4)
    assert torch.equal(torch.rand(3), expected)


def test_online_probe_passes_no_gradient_and_names_its_tensors_by_layer():
    probe, features = OnlineProbe(6, 4), torch.randn(5, 6, requires_grad=True)
    probe.losses(features, torch.arange(5) % 4)["probe_loss"].backward()
    assert features.grad is None
    assert all(p.grad is not None for p in probe.parameters())
    assert {name.split(".")[0] for name in probe.state_dict()} == {"0", "1"}


def test_online_probe_counts_known_labels_and_begins_anew():
    probe, features = OnlineProbe(6, 4).eval(), torch.randn(5, 6)
    predicted = probe(features).argmax(dim=1)
    labels = torch.where(torch.arange(5) < 2, predicted, -1)
    labels[2] = (predicted[2] + 1) % 4
    probe.count(features, labels)
    torch.testing.assert_close(probe.counted_accuracy().item(), 100 * 2 / 3, rtol=1e-6, atol=0)
    probe.count(features, torch.full((5,), -1))
    assert probe.counted_accuracy() == 0
