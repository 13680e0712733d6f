"""The plan of a pretraining run: every setting and everything derived from it, as small frozen dataclasses.

The command line resolves its flags into one Plan; each part is passed to the code that needs it and nothing changes it.
"""

from dataclasses import dataclass

from utils.errors import UserError
from utils.optim import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class HardwareConfig:
    """Where a run computes. accelerator: "cpu", "cuda" or "mps"; devices: a count, or CUDA device ids.

    processes: over all nodes. precision: "32", "bf16-mixed" or "16-mixed", with the reason for its choice.
    """

    accelerator: str
    devices: int | list[int]
    nodes: int
    processes: int
    precision: str = "32"
    precision_reason: str = ""
    compile: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class BatchConfig:
    """Images per step. batch_size: of one process and one forward pass; accumulate: batches per optimizer step."""

    batch_size: int
    processes: int
    accumulate: int

    @property
    def forward_batch(self) -> int:
        """Images that all processes see in one forward pass: what batch norm and negatives are made of."""
        return self.batch_size * self.processes

    @property
    def global_batch(self) -> int:
        """Images per optimizer step, over processes and accumulated batches."""
        return self.forward_batch * self.accumulate


@dataclass(frozen=True)
class ViewsConfig:
    """Settings of the views: sides in pixels, scales as shares of the image's area, probabilities in [0, 1].

    crop_scale: one pair for all large views, or one for each. jitter, jitter_strengths, gray, blur, solarize: one entry
    for all views, or one for each large view and perhaps one for the small ones.
    """

    large_size: int
    crop_scale: tuple[tuple[float, float], ...]
    small_views: int
    small_size: int
    small_scale: tuple[float, float]
    flip: float
    jitter: tuple[float, ...]
    jitter_strengths: tuple[tuple[float, float, float, float], ...]
    gray: tuple[float, ...]
    blur: tuple[float, ...]
    solarize: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the views that the backbone sees, in pixels: the large one, and the small one where there is one."""
        return (self.large_size, self.small_size) if self.small_views else (self.large_size,)


@dataclass(frozen=True)
class TrainingSet:
    """The training images: name of the data set, number of images, of labelled ones and of classes (0: no labels).

    fingerprint: a hash of names, sizes, labels and order.
    """

    name: str
    images: int
    labelled_images: int
    num_classes: int
    fingerprint: str

    def require_labels(self, flag: str) -> None:
        """A flag that needs labels is an error where the images have none."""
        if not self.num_classes:
            raise UserError(f"{flag} needs labels, but the training images of {self.name} have none; remove {flag}")


@dataclass(frozen=True)
class BackboneConfig:
    """A backbone by name. stem: "small" (3x3 without max-pool) or "imagenet", with the reason for its choice.

    patch_size: side in pixels of the patches of a vision transformer; pool: "token" (its class token) or "avg" (the
    average of the other tokens); None: the network's own. drop_path: largest probability that an image skips a block.
    """

    name: str
    stem: str
    stem_reason: str = ""
    zero_init_residual: bool = False
    patch_size: int | None = None
    drop_path: float = 0.0
    pool: str | None = None


@dataclass(frozen=True)
class DashboardConfig:
    """Settings of Weights & Biases and TensorBoard; name is that of the run on the dashboard."""

    wandb: bool
    name: str
    project: str
    entity: str | None
    offline: bool
    tensorboard: bool = False

    @property
    def any(self) -> bool:
        """Whether there is a dashboard."""
        return self.wandb or self.tensorboard


@dataclass(frozen=True)
class LoggingConfig:
    """Settings of logging and of evaluation during training.

    log_every: optimizer steps between two rows of metrics.csv. knn_every: epochs between two kNN evaluations, 0 for
    none. knn_k: the numbers of neighbours that the labels allow. on_alarm: "warn", or "stop" to end the run.
    """

    log_every: int
    knn_every: int
    knn_k: tuple[int, ...]
    dashboard: DashboardConfig
    on_alarm: str = "warn"


def is_logged_step(step: int, log_every: int, total_steps: int) -> bool:
    """Whether an optimizer step (counted from 1) is a row of metrics.csv: every few steps, the first and the last."""
    return step % log_every == 0 or step in (1, total_steps)


def is_evaluated(epoch: int, every: int, total_epochs: int) -> bool:
    """Whether an epoch is evaluated (counted from 1): every few epochs and the last one; every: 0 for none."""
    return bool(every) and (epoch % every == 0 or epoch == total_epochs)


def is_evaluation(name: str) -> bool:
    """Whether a metric is that of an evaluation, which only some epochs have."""
    return name.startswith(("knn_", "quality/"))


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written: every so many `unit` ("seconds", "steps" or "epochs"), and at the end of the run.

    keep_every: epochs between two checkpoints that stay for later analysis, 0 for none.
    """

    every: float = 1
    unit: str = "epochs"
    keep_every: int = 0


@dataclass(frozen=True)
class Plan:
    """A whole pretraining run. probe_lr: learning rate of the online probe, not scaled to the batch.

    teacher: the frozen network that the method learns from, where it has one.
    """

    method: str
    seed: int
    hardware: HardwareConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    probe_lr: float
    schedule: ScheduleConfig
    views: ViewsConfig
    training_set: TrainingSet
    backbone: BackboneConfig
    logging: LoggingConfig
    checkpoint: CheckpointConfig
    teacher: BackboneConfig | None = None
