"""Checkpoints as other tools lay them out, around a small ResNet."""

from argparse import Namespace

import numpy as np
import torch
from torch import Tensor, nn

from backbones.build import build_backbone
from utils.plan import BackboneConfig

NAME = "test_resnet.r160_in1k"
LAYOUTS = ("Lookalike", "Lookalike with a teacher", "torchvision", "timm", "MoCo", "SimSiam", "Barlow Twins", "DINO",
           "VISSL", "solo-learn", "Lightly", "torch.compile")  # fmt: skip


def new_network() -> nn.Module:
    """A small timm ResNet for views of 32 pixels."""
    return build_backbone(BackboneConfig(NAME, "imagenet"), 32)[0]


def filled_network(seed: int) -> nn.Module:
    """The small ResNet with random values in every tensor, and 7 in every counter."""
    torch.manual_seed(seed)
    network = new_network()
    for v in network.state_dict().values():
        v.copy_(torch.randn_like(v) if v.is_floating_point() else torch.full_like(v, 7))
    return network


def add_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in tensors.items()}


def rename_key(tree, endings: tuple[str, ...]):
    """A copy of the tree in which every key with one of these endings is "renamed"."""
    return {
        "renamed" if str(key).endswith(endings) else key: rename_key(value, endings)
        if isinstance(value, dict)
        else value
        for key, value in tree.items()
    }


def _in_sequential(network: nn.Module) -> dict[str, Tensor]:
    """Tensors as nn.Sequential(*list(resnet.children())[:-1]) names them."""
    number = {name: str(i) for i, (name, _) in enumerate(network.named_children())}
    return {".".join([number[k.split(".")[0]], *k.split(".")[1:]]): v for k, v in network.state_dict().items()}


def checkpoint(tool: str, network: nn.Module) -> dict:
    """A checkpoint of that tool with the tensors of the network, and with everything else that its files hold."""
    own, second = dict(network.state_dict()), filled_network(2)
    other = dict(second.state_dict())
    head = {"fc.weight": torch.ones(4, 96), "fc.bias": torch.ones(4)}
    mlp = {"0.weight": torch.ones(3, 3)}
    fc = {"fc.0.weight": torch.ones(8, 96), "fc.2.weight": torch.ones(4, 8)}
    extra = {"epoch": 3, "arch": "resnet50", "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}}
    layouts = {
        "Lookalike": {"state_dict": add_prefix("backbone.", own) | {"probe.1.weight": torch.ones(2, 96)},
                      "global_step": 5},
        "Lookalike with a teacher": {"state_dict": add_prefix("backbone.", own)
                                     | add_prefix("target.teacher.0.", other)},
        "torchvision": own | head,
        "timm": {"state_dict": own | head, "version": 2},
        "MoCo": extra | {"state_dict": add_prefix("module.encoder_q.", own | fc)
                         | add_prefix("module.encoder_k.", other | fc)
                         | {"module.queue": torch.ones(8, 4), "module.queue_ptr": torch.zeros(1)}},
        "SimSiam": extra | {"state_dict": add_prefix("module.encoder.", own | fc)
                            | add_prefix("module.predictor.", mlp)},
        "Barlow Twins": {"epoch": 9, "model": add_prefix("module.backbone.", own)
                         | add_prefix("module.projector.", mlp), "optimizer": extra["optimizer"]},
        "DINO": {"student": add_prefix("module.backbone.", other) | add_prefix("module.head.mlp.", mlp),
                 "teacher": add_prefix("backbone.", own) | add_prefix("head.mlp.", mlp),
                 "args": Namespace(arch="vit", lr=np.float64(0.1)), "epoch": np.int64(3)},
        "VISSL": {"phase_idx": 4, "classy_state_dict": {"base_model": {"model": {
            "trunk": add_prefix("_feature_blocks.", own), "heads": {"0.clf.0.weight": torch.ones(3, 3)}},
            "meters": {}}}},
        "solo-learn": {"state_dict": add_prefix("backbone.", own) | add_prefix("momentum_backbone.", other),
                       "hyper_parameters": {"lr": 0.3}},
        "Lightly": {"state_dict": add_prefix("backbone.", _in_sequential(network))
                    | add_prefix("backbone_momentum.", _in_sequential(second))},
        "torch.compile": {"model": add_prefix("_orig_mod.", own)},
    }  # fmt: skip
    return layouts[tool]
