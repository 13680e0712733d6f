"""Lightly's methods, or solo-learn's settings, with the images, network, length and seed of Lookalike's own runs.

    python3 -m bench.peers simclr --seed 0 --epochs 20 --data_folder datasets/cifar10-jpeg --record results/peers
    python3 -m bench.peers simclr --peer solo-learn --data_folder datasets/cifar10-jpeg --record results/peers

lightly: views, heads, losses and optimizer of the package, with the settings of its CIFAR-10 benchmark (VICReg, which that
lacks: see `vicreg`). solo-learn: its published settings, the recipes of bash_files/cifar10, run by Lookalike itself.
Both are evaluated by main_linear.py. docs/peers.md has the sources of the settings and what differs by design.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import main_contrastive
import main_linear
from backbones.build import build_backbone, choose_stem
from backbones.load import METADATA_KEYS, save_backbone
from bench.on_gpu import recipe
from bench.rows import REMEDIES, installed
from data.datasets import Data, read_dataset
from data.images import Images
from runs.checkpoint import WEIGHTS
from runs.folder import create_run_folder, writes_run_folder
from runs.trainer import expected_messages_hidden
from utils.arg_types import count, folder_name, positive_int
from utils.errors import UserError
from utils.files import OUTPUT
from utils.hardware import choose_hardware, choose_precision
from utils.plan import BackboneConfig

SIZE = 32  # side of an image in pixels
DATASET = "cifar10"
METHODS = ("simclr", "nnclr", "byol", "barlow_twins", "vicreg")
PEERS = ("lightly", "solo-learn")


class Views(Dataset):
    """Views of decoded images, which stay in memory; the transform sees the Pillow image of the file's pixels."""

    def __init__(self, images: Images, transform: Any):
        pixels = (images.decode(i).permute(1, 2, 0).numpy() for i in range(len(images)))
        self.images, self.transform = [Image.fromarray(x) for x in pixels], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[i])
        return views


class Peer(pl.LightningModule):
    """A backbone, a head and a loss of two embeddings (N, D); SGD with a cosine that moves once per epoch."""

    def __init__(self, backbone: nn.Module, head: nn.Module, criterion: nn.Module, args: argparse.Namespace):
        super().__init__()
        self.backbone, self.head, self.criterion, self.args = backbone, head, criterion, args
        self.begun = 0.0

    def embed(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.backbone(x))
        return z

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # in float32, as the losses of Lookalike
            value: Tensor = self.criterion(a.float(), b.float())
        return value

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x0, x1 = batch
        return self.loss(self.embed(x0), self.embed(x1))

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        lr = 0.06 * self.args.batch_size / 128
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.args.epochs)]

    def on_train_epoch_start(self) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            rate = (batch_idx + 1) * self.args.batch_size / (time.perf_counter() - self.begun)
            loss = float(outputs["loss"])
            print(
                f"epoch {self.current_epoch + 1}/{self.args.epochs}  loss {loss:.4f}  {rate:.0f} images/s", flush=True
            )


class NNCLRPeer(Peer):
    """Each prediction against the neighbour of the other view's projection among the last 4,096."""

    def __init__(self, *parts: Any):
        from lightly.models.modules import NNMemoryBankModule
        from lightly.models.modules.heads import NNCLRPredictionHead

        super().__init__(*parts)
        self.predictor, self.bank = NNCLRPredictionHead(256, 4096, 256), NNMemoryBankModule(size=(4096, 256))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z0, z1 = (self.embed(x) for x in batch)
        n0, n1 = self.bank(z0.detach(), update=False), self.bank(z1.detach(), update=True)
        return 0.5 * (self.loss(n0, self.predictor(z1)) + self.loss(n1, self.predictor(z0)))


class BYOLPeer(Peer):
    """Each prediction against the other view's projection by a momentum network, which moves by 1 % before a step."""

    def __init__(self, *parts: Any):
        from lightly.models.modules.heads import BYOLPredictionHead

        super().__init__(*parts)
        self.predictor = BYOLPredictionHead(256, 1024, 256)
        self.target = copy.deepcopy(nn.Sequential(self.backbone, self.head)).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(nn.Sequential(self.backbone, self.head), self.target, m=0.99)
        p0, p1 = (self.predictor(self.embed(x)) for x in batch)
        z0, z1 = (self.target(x) for x in batch)
        return 0.5 * (self.loss(p0, z1) + self.loss(p1, z0))


class VICRegPeer(Peer):
    """LARS with a tenth of the run as warm-up, as in Lightly's benchmark on Imagenette; it has none on CIFAR-10."""

    def configure_optimizers(self) -> Any:
        from lightly.utils.lars import LARS
        from lightly.utils.scheduler import CosineWarmupScheduler

        epochs = self.args.epochs
        optimizer = LARS(self.parameters(), lr=0.3 * self.args.batch_size / 256, weight_decay=1e-4, momentum=0.9)
        return [optimizer], [CosineWarmupScheduler(optimizer, -(-epochs // 10), epochs)]


def lightly_parts(method: str, dim: int, data: Data) -> tuple[Any, type[Peer], nn.Module, nn.Module]:
    """(transform, module, head, loss) of a method: the sizes of the benchmark, the statistics of the evaluation."""
    from lightly import loss, transforms
    from lightly.models.modules import heads

    stats = {"mean": list(data.mean), "std": list(data.std)}
    small: dict[str, Any] = {"input_size": SIZE, "gaussian_blur": 0.0, "normalize": stats}
    halves = (transforms.BYOLView1Transform(**small), transforms.BYOLView2Transform(**small))
    byol, simclr = transforms.BYOLTransform(*halves), transforms.SimCLRTransform(cj_strength=0.5, **small)
    hidden = (dim, 2048, nn.BatchNorm1d(2048), nn.ReLU())
    nnclr_head = heads.ProjectionHead([hidden, (2048, 256, nn.BatchNorm1d(256), None)])
    cosine, vicreg = loss.NegativeCosineSimilarity(), transforms.VICRegTransform(**small)
    return {
        "simclr": (simclr, Peer, heads.SimCLRProjectionHead(dim, 512, 128), loss.NTXentLoss()),
        "nnclr": (simclr, NNCLRPeer, nnclr_head, loss.NTXentLoss()),
        "byol": (byol, BYOLPeer, heads.BYOLProjectionHead(dim, 1024, 256), cosine),
        "barlow_twins": (byol, Peer, heads.ProjectionHead([hidden, (2048, 2048, None, None)]), loss.BarlowTwinsLoss()),
        "vicreg": (vicreg, VICRegPeer, heads.BarlowTwinsProjectionHead(dim, 2048, 2048), loss.VICRegLoss()),
    }[method]


def train_lightly(args: argparse.Namespace, data: Data) -> None:
    """Train a method of Lightly from the weights that Lookalike starts from with this seed, and save the backbone."""
    pl.seed_everything(args.seed, verbose=False)
    config = BackboneConfig(args.backbone, *choose_stem("auto", args.backbone, SIZE))
    backbone, dim = build_backbone(config, SIZE)
    transform, module, head, criterion = lightly_parts(args.method, dim, data)
    views = Views(data.train, transform)
    batches = DataLoader(views, args.batch_size, shuffle=True, drop_last=True, num_workers=args.num_workers,
                         persistent_workers=args.num_workers > 0)  # fmt: skip
    model = module(backbone, head, criterion, args)
    with expected_messages_hidden():
        trainer = pl.Trainer(accelerator=args.accelerator, devices=1, precision=args.precision, max_epochs=args.epochs,
                             logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             enable_model_summary=False)  # fmt: skip
        trainer.fit(model, batches)
    facts = (f"lightly-{args.method}", DATASET, args.backbone, config.stem, False, SIZE, data.classes, args.seed,
             None, 0.0, None)  # fmt: skip
    metadata = {name: str(fact) for name, fact in zip(METADATA_KEYS, facts, strict=True)}
    save_backbone(Path(args.output) / args.run_id / WEIGHTS, backbone, metadata)


def solo_learn_words(args: argparse.Namespace) -> list[str]:
    """The recipe with another network and length, and a warm-up of at most a tenth of the run (theirs: 10 epochs)."""
    _, _, *flags = recipe(args.method)
    changed = {"epochs": args.epochs, "warmup_epochs": min(10.0, args.epochs / 10), "batch_size": args.batch_size,
               "precision": args.precision, "seed": args.seed, "output": args.output, "run_id": args.run_id,
               "knn_every": 0}  # fmt: skip
    return [DATASET, args.backbone, *flags, *data_words(args), *(f"--{key}={value}" for key, value in changed.items())]


def data_words(args: argparse.Namespace) -> list[str]:
    return ["--data_folder", args.data_folder, "--train_dir", args.train_dir, "--val_dir", args.val_dir,
            "--num_workers", str(args.num_workers)]  # fmt: skip


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--peer", choices=PEERS, default=PEERS[0], help="whose settings (default: lightly)")
    parser.add_argument("--backbone", default="test_resnet.r160_in1k", help="name (default: test_resnet.r160_in1k)")
    parser.add_argument("--epochs", type=positive_int, default=20, help="default: 20")
    parser.add_argument("--batch_size", type=positive_int, default=256, help="default: 256")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    parser.add_argument("--data_folder", required=True, help="folder of CIFAR-10 as class folders")
    parser.add_argument("--train_dir", default="train", help="class folders in it to train on (default: train)")
    parser.add_argument("--val_dir", default="test", help="class folders in it to evaluate on (default: test)")
    parser.add_argument("--num_workers", type=count, default=0,
                        help="worker processes; 0, the default: the views are made in the main process")  # fmt: skip
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], help="default: as main_contrastive.py chooses")
    parser.add_argument("--output", default=OUTPUT, help=f"parent directory of run folders (default: {OUTPUT})")
    parser.add_argument("--run_id", type=folder_name, help="name of the run folder (default: PEER-METHOD-SEED)")
    parser.add_argument("--record", metavar="DIR", help="write the records of training and evaluation to this folder")
    args = parser.parse_args(argv)
    args.accelerator = choose_hardware("auto", None).accelerator
    args.precision = choose_precision(args.precision, args.accelerator)[0]
    args.run_id = args.run_id or f"{args.peer}-{args.method}-{args.seed}"
    return args


@writes_run_folder
def main(argv: list[str]) -> None:
    """Train, save the backbone, write the record, and evaluate by Lookalike's own command."""
    args = parse(argv)
    data = read_dataset(DATASET, args.data_folder, args.train_dir, args.val_dir)
    if len(data.train) < args.batch_size:
        raise UserError(f"--batch_size {args.batch_size}: there are {len(data.train)} training images; lower it")
    started = time.perf_counter()
    if args.peer == "lightly":
        if not installed("lightly"):
            raise UserError(REMEDIES["lightly"])
        create_run_folder(args.output, args.run_id)
        train_lightly(args, data)
    else:
        main_contrastive.main(solo_learn_words(args))
    seconds = time.perf_counter() - started
    print(f"{args.run_id}: {seconds:.0f} s of training in {args.precision}", flush=True)
    folder = str(Path(args.output) / args.run_id)
    main_linear.main([DATASET, args.backbone, *data_words(args), "--pretrained_feature_extractor", folder,
                      "--evaluation", "knn", "logistic", "--seed", str(args.seed), "--output", args.output,
                      "--run_id", f"{args.run_id}-evaluated"])  # fmt: skip


if __name__ == "__main__":
    from utils.errors import run_cli

    run_cli(main)
