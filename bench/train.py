"""Images per second of whole training runs beside the bare step on ready-made tensors.

    python3 -m bench.train --rounds 3 --output bench/results/FILE.json

The whole run is the application's own: Trainer, data module, augmentation, online probe, log. The bare step is the
same method, optimizer and batch, forward, backward and step, on tensors that are already there. Both alternate in one
process, so that a busy machine slows both; the table gives medians, and the cost of everything around the bare step.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback

from data.datasets import DATASETS, read_dataset
from data.pipelines import build_pipeline
from data.views import view_specs
from methods import METHODS
from utils.args import parse
from utils.backbones import build_backbone
from utils.batch import Batch
from utils.hardware import peak_memory
from utils.logs import MetricsCSV
from utils.optim import build_optimizer, parameter_groups
from utils.resolve import resolve
from utils.run import provenance
from utils.trainer import build_trainer

# name -> (command, steps per round). The images are scans of 8x8 pixels, drawn at 32: the work of a CIFAR-sized run.
CPU_ROWS = {
    "simclr, ResNet-18, 3x3 stem": ("digits resnet18 --method simclr --batch_size 64", 8),
    "nnclr, ResNet-18, 3x3 stem": ("digits resnet18 --method nnclr --batch_size 64 --queue_size 4096", 8),
    "simclr, ResNet-18, 7x7 stem": ("digits resnet18 --method simclr --batch_size 64 --stem imagenet", 24),
}
GPU_ROWS = {
    "simclr, ResNet-18, 3x3 stem": ("digits resnet18 --method simclr --batch_size 256", 200),
    "nnclr, ResNet-18, 3x3 stem": ("digits resnet18 --method nnclr --batch_size 256 --queue_size 65536", 200),
}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(Callback):
    """Seconds of the steps after the first few, from the end of one to the end of the last."""

    def __init__(self, warm: int):
        self.warm, self.seconds, self.steps = warm, 0.0, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.warm:
            synchronize()
            self._start = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        synchronize()
        self.seconds, self.steps = time.perf_counter() - self._start, trainer.global_step - self.warm


class Subject:
    """One row: a method, its data and its optimizer, to be run whole or bare."""

    def __init__(self, command: str, steps: int, warm: int):
        self.steps, self.warm = steps, warm
        argv = [*command.split(), "--steps", str(steps + warm), "--knn_every", "0", "--scheduler", "none"]
        typed = parse(argv, METHODS, DATASETS)
        data = read_dataset(typed.dataset, typed.data_folder, typed.train_dir, typed.val_dir)
        self.args = resolve(typed, len(data.train), len(data.train), data.classes, data.train.fingerprint())
        backbone, dim = build_backbone(self.args.backbone, self.args.used_stem, self.args.large_size)
        self.method = METHODS[self.args.method](self.args, backbone, dim)
        self.module = build_pipeline("device", data, view_specs(self.args, 2), self.args)

    def whole(self) -> float:
        """Images per second of the application's training loop."""
        clock = Clock(self.warm)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(self.args, [clock], [MetricsCSV(Path(folder))], validate=False)
            trainer.fit(self.method, datamodule=self.module)
        return clock.steps * self.args.batch_size / clock.seconds

    def bare(self) -> float:
        """Images per second of forward, backward and step on tensors that are already on the device."""
        device = torch.device(self.args.accelerator)
        method = self.method.to(device).train()
        n, size = self.args.batch_size, self.args.large_size
        views = [torch.randn(n, 3, size, size, device=device) for _ in range(2)]
        batch = Batch(torch.arange(n, device=device), views, torch.zeros(n, dtype=torch.long, device=device))
        optimizer = build_optimizer(parameter_groups(method, self.args), self.args)
        dtype = torch.bfloat16 if self.args.used_precision == "bf16-mixed" else torch.float32
        for step in range(self.warm + self.steps):
            if step == self.warm:
                synchronize()
                start = time.perf_counter()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                out = method.losses(batch)
                loss = out["loss"] + out["probe_loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.advance(0.0)
        synchronize()
        return self.steps * n / (time.perf_counter() - start)


def measure(name: str, command: str, steps: int, rounds: int) -> dict:
    subject = Subject(command, steps, warm=max(2, steps // 10))
    pairs = [(subject.whole(), subject.bare()) for _ in range(rounds)]
    cost = statistics.median(1 - whole / bare for whole, bare in pairs)
    whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name:<32} {whole:>10.1f} {bare:>10.1f} {cost:>9.1%}", flush=True)
    return {"name": name, "command": f"main_contrastive.py {command}", "precision": subject.args.used_precision,
            "images_per_second": whole, "bare_step_images_per_second": bare, "cost_around_the_step": cost,
            "rounds": pairs, "peak_memory_bytes": peak_memory(subject.args.accelerator)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}; source images per second, medians of {args.rounds}\n")
    print(f"{'32 px, two views':<32} {'whole run':>10} {'bare step':>10} {'cost':>9}")
    rows = [measure(name, *row, args.rounds) for name, row in (GPU_ROWS if cuda else CPU_ROWS).items()]
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"device": device, "rows": rows} | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
