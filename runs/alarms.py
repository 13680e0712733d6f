"""Alarms: what tells, before and while a run trains, that it learns nothing; each is said once, with what to try.

NaN is no alarm: `runs.finite` always ends the run. docs/training.md lists the alarms with the reasons of their limits.
"""

import contextlib
import json
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from runs.callbacks import Throughput, is_logged
from runs.lightning_internals import write_step_metrics
from utils.batch import Batch
from utils.distributed import broadcast_str, mean_over_ranks, rank_zero_print
from utils.errors import UserError
from utils.feature_quality import embedding_std, rankme, uniformity
from utils.files import read_json, write_json
from utils.optim import learning_rate
from utils.plan import Plan
from utils.precision import l2_normalize
from utils.queue import FeatureQueue

FILE = "alarms.json"
ROWS = 64  # embeddings of a process that are compared with each other: enough for a rank of 6, and a millisecond or two
READINGS = 3  # readings in a row that must be beyond a limit: one alone may be chance
HISTORY = 200  # optimizer steps whose median gradient norm counts as usual
WAIT_STEPS = 30  # optimizer steps over which waiting for data is averaged
QUEUE_TIMES = 2  # times the data set from which a queue holds mostly old embeddings of the same images


@dataclass(frozen=True)
class Limit:
    """When a number that is read at logged steps sets off the alarm `name`, and what is said then.

    what: the number in words. low, high: it is beyond the limit below or above these. patience: optimizer steps that it
    must stay there. Every limit is set between healthy and broken runs, with room on both sides.
    """

    name: str
    number: str
    what: str
    remedy: str
    low: float = -math.inf
    high: float = math.inf
    patience: int = 0

    def is_beyond(self, value: float) -> bool:
        return value < self.low or value > self.high

    def threshold(self, value: float) -> float:
        """The threshold that the value is beyond."""
        return self.low if value < self.low else self.high


COLLAPSE = "lower the learning rate; compare the flags with a recipe; check stop-gradient, predictor and teacher"
# What healthy and broken runs showed is in docs/training.md, section "Alarms".
LIMITS = (
    Limit("collapse: standard deviation", "embedding_std", "standard deviation of unit embeddings, times sqrt(D),",
          COLLAPSE, low=0.3, patience=30),
    Limit("collapse: effective rank", "rank_share", "effective rank of the embeddings, as a share of what is healthy,",
          COLLAPSE, low=1.0, patience=30),
    Limit("collapse: uniformity", "uniformity", "uniformity of the embeddings", COLLAPSE, high=-0.5, patience=30),
    Limit("nearest-neighbour collapse", "nn_distinct", "share of different rows among the nearest neighbours",
          "lower the learning rate; take a longer queue or stronger augmentations", low=0.05, patience=30),
    Limit("loss at chance", "chance", "loss, as a share of the logarithm of its number of choices,",
          "lower the learning rate, warm up longer, and look at the images: can views be told apart?",
          high=0.99, patience=100),
    Limit("images in file order", "file_order", "share of images that the next one of the data set follows in a batch",
          "shuffle the training images", high=0.5, patience=30),
    Limit("batches of one class", "one_class", "largest class of a batch, as a share beyond that in all batches,",
          "shuffle the training images", high=0.5, patience=30),
    Limit("gradient explosion", "gradient_ratio", "gradient norm over its running median",
          "lower the learning rate, warm up longer, or try --clip_grad", high=30.0),
    Limit("learning rate zero", "lr_share", "learning rate as a share of the planned one",
          "check --scheduler, --lr_decay_steps and --lr_decay_factor", low=1e-6),
    Limit("starving device", "data_wait_fraction", "share of the time that is spent waiting for data",
          "raise --num_workers up to the number of cores; try --pipeline memory", high=0.5, patience=60),
)  # fmt: skip


@dataclass
class Alarm:
    """An alarm that was said. over: step at which the number was back within its limit, None while it is not."""

    name: str
    step: int
    value: float | None
    threshold: float | None
    text: str
    over: int | None = None


class Alarms(Callback):
    """Say when training goes wrong, once for each alarm and again only after it went away; keep them in alarms.json.

    Numbers are read at logged steps, averaged over all processes, so that every process comes to the same conclusion.
    With --on_alarm stop an alarm ends the run, and nothing is saved. Embeddings are the first output of the submodule
    `projector` in a step; those of a method without one are the backbone's features.
    """

    def __init__(self, plan: Plan, folder: Path, throughput: Throughput) -> None:
        self.plan, self.path, self.throughput = plan, folder / FILE, throughput
        steps = plan.schedule.total_steps
        self.grace = max(plan.schedule.warmup_steps, steps // 20)  # before, untrained networks look like broken ones
        self.alarms: list[Alarm] = []
        self._beyond: dict[str, tuple[int, int]] = {}  # name -> (step of the first reading beyond, number of readings)
        self._embedding: Tensor | None = None
        self._norms: list[Tensor] = []  # since the last reading, on the device
        self._usual_norms: deque[float] = deque(maxlen=HISTORY)
        self._labels: Counter[int] = Counter()  # of the batches that were read
        self._step = 0
        self._waited: tuple[int, float, float] = (0, 0.0, 0.0)  # step, seconds waited and seconds in all
        self._hook: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._waited = (self._step, self.throughput.waited, self.throughput.elapsed)
        head = getattr(pl_module, "projector", pl_module)  # the module itself is called for the backbone's features
        self._hook = head.register_forward_hook(self._keep_first)
        self._restore(trainer.global_step)
        if trainer.global_step == 0:
            self._check_before_training(trainer, pl_module)

    def _restore(self, step: int) -> None:
        """Take over what was said before a resumed run was interrupted."""
        with contextlib.suppress(UserError):  # no alarm yet, or a damaged file: then an alarm is said again
            said = [Alarm(**entry) for entry in read_json(self.path)["alarms"]] if step and self.path.exists() else []
            self.alarms = [alarm for alarm in said if alarm.step <= step]

    def _keep_first(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        if self._embedding is None:
            self._embedding = output.detach()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._embedding = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # a batch of an accumulated step
            return
        self._step = trainer.global_step
        if (norm := getattr(pl_module, "grad_norm", None)) is not None:
            self._norms.append(norm)
        if is_logged(trainer, self.plan.logging.log_every):
            self._compare_with_limits(trainer, self._read(trainer, pl_module, batch))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _read(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> dict[str, float]:
        """The numbers of LIMITS after this step, the same on every process; NaN where there is none."""
        own = embedding_statistics(self._embedding) | self._order(batch)
        own |= {"gradient_ratio": self._gradient_ratio(), "data_wait_fraction": self._data_wait_fraction()}
        values = mean_over_ranks(torch.tensor(list(own.values()), device=pl_module.device)).tolist()
        numbers = dict(zip(own, values, strict=True))
        logged = trainer.callback_metrics  # means over processes already
        if choices := getattr(pl_module, "num_choices", None):
            numbers["chance"] = float(logged["loss"]) / math.log(choices)
        if "nn_distinct" in logged:
            numbers["nn_distinct"] = float(logged["nn_distinct"])
        if self._step < 0.99 * self.plan.schedule.total_steps:  # a cosine ends at zero
            numbers["lr_share"] = learning_rate(trainer.optimizers[0]) / self.plan.optimizer.lr
        return numbers

    def _order(self, batch: Batch) -> dict[str, float]:
        """How far a batch is from a random one: neighbours in the data set that follow each other, and one class."""
        index = batch.index.cpu()
        labels = Counter(label for label in batch.labels.tolist() if label >= 0)
        self._labels.update(labels)
        one_class = _largest_share(labels) - _largest_share(self._labels) if labels else math.nan
        return {"file_order": (index.diff() == 1).float().mean().item(), "one_class": one_class}

    def _gradient_ratio(self) -> float:
        """Largest gradient norm since the last reading, over the median of the steps before."""
        norms = [norm for norm in torch.stack(self._norms).tolist() if math.isfinite(norm)] if self._norms else []
        median = statistics.median(self._usual_norms) if len(self._usual_norms) >= HISTORY // 10 else 0.0
        self._norms.clear()
        self._usual_norms.extend(norms)
        return max(norms) / median if norms and median else math.nan

    def _data_wait_fraction(self) -> float:
        """Share of the time since the last reading, at least WAIT_STEPS ago, that was spent waiting for data."""
        step, waited, elapsed = self._waited
        if self._step - step < WAIT_STEPS or self.throughput.elapsed <= elapsed:
            return math.nan
        share = (self.throughput.waited - waited) / (self.throughput.elapsed - elapsed)
        self._waited = (self._step, self.throughput.waited, self.throughput.elapsed)
        return share

    def _compare_with_limits(self, trainer: Trainer, numbers: dict[str, float]) -> None:
        """Say what is beyond its limit for long enough, and note what is within it again."""
        if self._step < self.grace:
            return
        new = []
        for limit in LIMITS:
            value = numbers.get(limit.number, math.nan)
            if math.isnan(value):
                continue
            if not limit.is_beyond(value):
                self._beyond.pop(limit.name, None)
                self._end(trainer, limit.name)
                continue
            first, readings = self._beyond.get(limit.name, (self._step, 0))
            self._beyond[limit.name] = (first, readings + 1)
            # A limit without patience is one that a single reading proves.
            long = self._step - first >= limit.patience and readings + 1 >= READINGS if limit.patience else True
            if long and not self._is_on(limit.name):
                threshold = limit.threshold(value)
                side = "below" if value < limit.low else "above"
                text = f"the {limit.what} is {value:.3g}, {side} {threshold:g}; {limit.remedy}"
                new.append(Alarm(limit.name, self._step, value, threshold, text))
        self._announce(trainer, new)

    def _check_before_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is wrong with the images, or with a queue for so few images."""
        find = getattr(getattr(trainer, "datamodule", None), "image_alarms", dict)
        # The first process looks, for some seconds at most; the clock may let others see more or fewer images.
        found: dict[str, str] = json.loads(broadcast_str(json.dumps(find() if trainer.is_global_zero else {})))
        new = [Alarm(name, 0, None, None, text) for name, text in found.items()]
        images = self.plan.training_set.images
        for queue in (m for m in pl_module.modules() if isinstance(m, FeatureQueue)):
            if len(queue.rows) > QUEUE_TIMES * images:
                text = (
                    f"the queue of {len(queue.rows):,} rows is {len(queue.rows) / images:.1f} times the {images:,} "
                    f"training images, so neighbours are old embeddings of the same images; take a queue of at most "
                    f"{QUEUE_TIMES * images:,} rows"
                )
                new.append(Alarm("queue larger than the data set", 0, len(queue.rows) / images, QUEUE_TIMES, text))
        self._announce(trainer, new)

    def _is_on(self, name: str) -> bool:
        return any(alarm.name == name and alarm.over is None for alarm in self.alarms)

    def _end(self, trainer: Trainer, name: str) -> None:
        for alarm in self.alarms:
            if alarm.name == name and alarm.over is None:
                alarm.over = self._step
                self._write(trainer)

    def _announce(self, trainer: Trainer, new: Iterable[Alarm]) -> None:
        """Print and record alarms; with --on_alarm stop, end the run for the first of them, on every process."""
        for alarm in new:
            self.alarms.append(alarm)
            self._write(trainer)
            when = f"at step {alarm.step}" if alarm.step else "before training"
            line = f"{alarm.name} {when}: {alarm.text}"
            if self.plan.logging.on_alarm == "stop":
                if alarm.step:
                    write_step_metrics(trainer)  # the row that tells why; Lightning would write it after this hook
                raise UserError(f"{line}; --on_alarm stop ended the run, and the last checkpoint is untouched")
            rank_zero_print(f"  alarm: {line}")

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            with contextlib.suppress(UserError):  # a full disk must not end a run for a remark about it
                write_json(self.path, {"alarms": [asdict(alarm) for alarm in self.alarms]})


def _largest_share(labels: Counter[int]) -> float:
    return max(labels.values()) / labels.total()


def embedding_statistics(z: Tensor | None) -> dict[str, float]:
    """How far the first ROWS embeddings are apart. z: (n, D), or None; NaN where nothing can be said.

    embedding_std: standard deviation of a coordinate of unit embeddings, times sqrt(D): 1 where all directions are used
    (Chen and He, 2021). rank_share: RankMe over the least that is healthy, min(6, an eighth of the rank that n and D
    allow). uniformity: Wang and Isola, 2020.
    """
    nothing = dict.fromkeys(("embedding_std", "rank_share", "uniformity"), math.nan)
    if z is None or z.ndim != 2 or len(z) < 2:
        return nothing
    rows = l2_normalize(z[:ROWS]).cpu().double()
    if not rows.isfinite().all():  # the loss tells
        return nothing
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    turned = vectors * values.clamp(min=0).sqrt()  # (n, n), with the angles and the singular values of `rows`
    healthy = min(6.0, min(rows.shape) / 8)
    return {
        "embedding_std": embedding_std(rows) * math.sqrt(rows.shape[1]),
        "rank_share": rankme(turned) / healthy,
        "uniformity": uniformity(turned),
    }
