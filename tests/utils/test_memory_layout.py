"""Channels last: strides change, values do not."""

import pytest
import torch
from timm import create_model
from torch import nn

from utils.memory_layout import channels_last, convolutions_channels_last, fastest_layers


def test_channels_last_changes_the_strides_alone():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(channels_last(x), x)
    assert channels_last(x).is_contiguous(memory_format=torch.channels_last)


def test_convolutions_channels_last_changes_the_strides_of_convolutions_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv1d(2, 2, 3)), nn.Linear(2, 2))
    module.register_buffer("five", torch.randn(1, 2, 3, 4, 5))  # torch has no channels last for five dimensions
    before = {k: v.clone() for k, v in module.state_dict().items()}
    parameters = list(module.parameters())
    convolutions_channels_last(module, "cuda")
    assert all(p is q for p, q in zip(parameters, module.parameters(), strict=True)), "an optimizer may have them"
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not module[0].weight.is_contiguous()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.is_contiguous() or name == "0.weight", name


@pytest.mark.parametrize(("accelerator", "precision"), [("cpu", "bf16-mixed"), ("cpu", "32"), ("cuda", "bf16-mixed")])
def test_attention_is_plain_on_a_cpu_in_bf16_alone_with_equal_gradients(accelerator, precision):
    network = create_model("test_vit", num_classes=0)
    x, gradients = torch.randn(2, 3, 160, 160), []
    for _ in range(2):
        network.zero_grad()
        network(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        fastest_layers(network, accelerator, precision)
    fused = {block.attn.fused_attn for block in network.blocks}
    assert fused == {(accelerator, precision) != ("cpu", "bf16-mixed")}
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
