"""What the tests over all methods know of single ones: the only such list, and every entry is optional.

A method without an entry runs with its defaults and small heads, on a convolutional network.
"""

from collections.abc import Callable
from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from methods import METHODS


@dataclass(frozen=True)
class MethodCase:
    """What a method needs in tests.

    sizes: flags that make it small, beside those of tests/helpers/commands.py. variants: flags of other objectives of
    the method, which run wherever the method itself does. frozen: names of parameters that
    the method does not train, beside those of a teacher. local: the variants ("" for none) in which no gradient passes
    from one process to another: losses that compare no images, of a ViT without batch norms.
    """

    sizes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    local: tuple[str, ...] = ()


CASES: dict[str, MethodCase] = {
    "byol": MethodCase(variants=("--neighbours",)),
    "deepclusterv2": MethodCase(sizes=("--num_centroids", "4")),
    "dino": MethodCase(sizes=("--num_prototypes", "12"), variants=("--head_norm",)),
    "distill": MethodCase(variants=("--regress",)),
    "ibot": MethodCase(sizes=("--num_prototypes", "12"), variants=("--untied_head --koleo 0.1",), local=("",)),
    "ijepa": MethodCase(
        sizes=("--target_blocks", "2", "--predictor_dim", "8", "--predictor_layers", "1", "--predictor_heads", "2"),
        frozen=("backbone.pos_embed",),
        local=("",),
    ),
    "lejepa": MethodCase(sizes=("--directions", "16")),
    "mae": MethodCase(
        sizes=("--decoder_dim", "8", "--decoder_layers", "1", "--decoder_heads", "2"),
        variants=("--no_norm_pixels",),
        frozen=("backbone.pos_embed",),
        local=("", "--no_norm_pixels"),
    ),
    "mocov2": MethodCase(variants=("--symmetric",)),
    "nnclr": MethodCase(variants=("--no_predictor", "--top_k 3 --push_views 2", "--same_class_neighbours")),
    "simclr": MethodCase(variants=("--supervised", "--decoupled --decoupled_weights")),
    "simsiam": MethodCase(variants=("--neighbours",)),
    "swav": MethodCase(
        sizes=("--num_prototypes", "5", "--queue_size", "0"), variants=("--queue_size 12 --queue_start_epoch 0",)
    ),
}
SMALL_VIEWS = "--small_views 2"


def case_of(name: str) -> MethodCase:
    """The entry of a method, or the one of all others."""
    return CASES.get(name, MethodCase())


def is_frozen(name: str, key: str) -> bool:
    """Whether a method does not train the parameter `key`, which is then no accident."""
    return "teacher." in key or key in case_of(name).frozen


def every_case() -> list[str]:
    """Command words of every method and its variants, each with small views too where the method supports them."""
    return [
        " ".join(part for part in (name, variant, small) if part)
        for name, method in METHODS.items()
        for variant in ("", *case_of(name).variants)
        for small in (("", SMALL_VIEWS) if method.supports_small_views else ("",))
    ]


def is_local(case: str) -> bool:
    """Whether no gradient passes from one process to another in this one of `every_case`."""
    name, *words = case.removesuffix(SMALL_VIEWS).split()
    return " ".join(words) in case_of(name).local


def backbone_of(name: str, otherwise: Callable[[], nn.Module], size: int, patch: int, dim: int) -> nn.Module:
    """A backbone for a method: a ViT of one block where it needs one, else what `otherwise` builds.

    size: side of the images in pixels. patch: side of a patch. dim: width of the features.
    """
    if not METHODS[name].transformer_name:
        return otherwise()
    return VisionTransformer(img_size=size, patch_size=patch, embed_dim=dim, depth=1, num_heads=2, num_classes=0,
                             dynamic_img_size=True)  # fmt: skip
