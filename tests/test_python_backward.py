"""The backward pass in Python gives the gradients of torch's engine."""

import pytest
import torch
import torch._dynamo  # here, since it leaves a variable in the environment and a dispatch mode would import it
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.python_backward import backward, grad


def two_losses():
    """(network, two losses that share it, an inner tensor of it), float64."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.double)
    inner = network[:3](x)
    out = network[3](inner)
    first, second = out.unbind(dim=1)[:2]  # a node with several outputs, one of them unused
    return network, [(first * second).sum(), out.logsumexp(dim=1)], inner


def test_backward_accumulates_the_gradients_of_the_engine():
    network, (loss, rows), _ = two_losses()
    total = loss + rows.mean() + (rows * rows.detach()).mean()
    total.backward(retain_graph=True)
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    backward(total)
    assert_close([p.grad for p in network.parameters()], expected)


def test_grad_equals_that_of_the_engine_for_leaves_and_inner_tensors():
    network, (loss, rows), inner = two_losses()
    weights, unused = list(network[3].parameters()), torch.ones(2, requires_grad=True)
    for inputs in ([*network.parameters()], [inner], [*weights, unused]):
        given = torch.tensor(2.0, dtype=torch.double), torch.arange(6.0, dtype=torch.double)
        expected = torch.autograd.grad([loss, rows], inputs, given, allow_unused=True, retain_graph=True)
        found = grad([loss, rows], inputs, given, allow_unused=True)
        assert [g is None for g in found] == [g is None for g in expected]
        assert_close([g for g in found if g is not None], [g for g in expected if g is not None])
    assert all(p.grad is None for p in network.parameters()), "grad accumulates nothing"
    with pytest.raises(AssertionError, match="does not depend"):
        grad([loss], [unused])


class CountCopies(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::copy_", "aten::clone", "aten::add_")
        return func(*args, **kwargs or {})


def test_backward_copies_a_gradient_where_the_engine_does():
    counts = []
    for run in (torch.Tensor.backward, backward):
        network, (loss, _), _ = two_losses()
        for _ in range(2):  # the second pass adds to the gradients of the first
            with CountCopies() as copies:
                run(loss, retain_graph=True)
            counts.append(copies.count)
    assert counts[:2] == counts[2:]
    assert counts[1] == counts[0] + len(list(network.parameters()))


def test_leaves_that_get_one_gradient_do_not_share_its_memory():
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    given = torch.ones(3)
    backward(a + b, given)
    assert len({x.data_ptr() for x in (a.grad, b.grad, given)}) == 3
