"""A vision transformer that is small enough for a test."""

from timm.models.vision_transformer import VisionTransformer


def tiny_transformer(**options) -> VisionTransformer:
    """timm's own vision transformer of one block and width 12 for images of 8 pixels, 4 x 4 patches of 2 pixels."""
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**sizes | options)
