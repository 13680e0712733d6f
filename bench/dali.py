"""Baseline: NVIDIA DALI doing everything on the CPU, as its users write it: two views of 224 pixels."""

from typing import Any

from bench.sides import Settings, Work
from bench.task import BATCH, LARGE, WORKERS, from_files
from bench.usual import MEAN, STD
from data.views import RATIO, SIGMA


def views(settings: Settings) -> Work:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    def chance(p: float, dtype: Any = types.DALIDataType.BOOL) -> Any:
        return fn.random.coin_flip(probability=p, dtype=dtype)

    def factor(strength: float) -> Any:
        return fn.random.uniform(range=[1 - strength, 1 + strength])

    @pipeline_def(  # type: ignore[call-overload]  # None is no device, which its annotation forgets
        batch_size=BATCH, num_threads=WORKERS, device_id=None, enable_conditionals=True
    )
    def two_views() -> Any:
        files, labels = fn.readers.file(file_root=str(settings.photographs), random_shuffle=True)
        image = fn.decoders.image(files)
        out = []
        for _ in range(2):
            x = fn.random_resized_crop(
                image, size=LARGE.size, random_area=list(LARGE.scale), random_aspect_ratio=list(RATIO)
            )
            if chance(LARGE.jitter):
                hue = fn.random.uniform(range=[-360 * LARGE.hue, 360 * LARGE.hue])
                b, c, s = factor(LARGE.brightness), factor(LARGE.contrast), factor(LARGE.saturation)
                x = fn.color_twist(x, brightness=b, contrast=c, saturation=s, hue=hue)
            if chance(LARGE.gray):
                x = fn.hsv(x, saturation=0.0)
            if chance(LARGE.blur):
                x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=list(SIGMA)))
            flip = chance(LARGE.flip, types.DALIDataType.INT32)
            mean, std = [255 * v for v in MEAN], [255 * v for v in STD]
            out.append(fn.crop_mirror_normalize(x, mirror=flip, mean=mean, std=std, output_layout="CHW"))
        return (*out, labels)

    batches = DALIGenericIterator([two_views()], ["first", "second", "label"])  # without end
    return Work(from_files(lambda: batches))
