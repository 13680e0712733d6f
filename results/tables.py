"""The tables of results: which runs each is made of, in the order of their value."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODELS = "trained_models"
DATA = "datasets/cifar10-jpeg"  # class folders train/ and test/ of CIFAR-10 (JPEG), see results/data.py
NETWORK = "test_resnet --stem imagenet"
TRANSFORMER = "test_vit --patch_size 4"
TRAINING = (
    "--batch_size 256 --optimizer adamw --scheduler warmup_cosine --precision bf16-mixed --num_workers 1 --log_every 20"
)
SEARCHED = {"--lr": (0.001, 0.002, 0.004, 0.002), "--weight_decay": (0.01, 0.01, 0.01, 0.1)}  # tried together
QUEUE = 16384
HEADS = "--hidden_mlp 512 --proj_dim 128"
WIDE = "--hidden_mlp 512 --proj_dim 512"
CROPS = "--jitter_strengths 0.8 0.8 0.8 0.2"
SIMCLR = f"--method simclr {HEADS} --temperature 0.2 {CROPS}"
NNCLR = f"--method nnclr {HEADS} --pred_hidden_mlp 512 --temperature 0.2 --queue_size {QUEUE} {CROPS}"
BYOL = f"--method byol {HEADS} --pred_hidden_mlp 512 --tau 0.98 {CROPS}"
SIMSIAM = f"--method simsiam {WIDE} --pred_hidden_mlp 128 {CROPS}"
MOCO = f"--method mocov2 {HEADS} --queue_size {QUEUE} --temperature 0.2 --tau 0.99 {CROPS}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its title, the flags that make it, and what it builds on.

    searched: name of the row whose rate and decay it takes, its own where empty. network: another backbone. needs:
    rows that must have run with the same seed. before: arguments of evaluation commands that run first.
    """

    title: str
    flags: str
    searched: str = ""
    network: str = NETWORK
    needs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


METHODS: dict[str, Row] = {  # in the order of their value
    "simclr": Row("SimCLR", SIMCLR),
    "nnclr": Row("NNCLR", NNCLR),
    "byol": Row("BYOL", BYOL),
    "barlow_twins": Row("Barlow Twins", f"--method barlow_twins {WIDE} {CROPS}"),
    "simsiam": Row("SimSiam", SIMSIAM),
    "vicreg": Row("VICReg", f"--method vicreg {WIDE} {CROPS}"),
    "supcon": Row("SupCon (labels)", f"{SIMCLR} --supervised"),
    "mocov2": Row("MoCo v2", MOCO),
    "swav": Row("SwAV", f"--method swav {HEADS} --num_prototypes 512 --epsilon 0.03 {CROPS}"),
    "dino": Row(
        "DINO",
        "--method dino --hidden_mlp 512 --proj_dim 64 --num_prototypes 2048 --tau 0.99 --head_norm "
        f"--teacher_temperature 0.04 --crop_scale 0.3 1.0 {CROPS}",
    ),
    "rotnet": Row("RotNet", "--method rotnet"),
    "mocov3": Row("MoCo v3", f"--method mocov3 {HEADS} --pred_hidden_mlp 512 --temperature 0.2 --tau 0.99 {CROPS}"),
    "deepclusterv2": Row("DeepCluster v2", f"--method deepclusterv2 {HEADS} --num_centroids 512 512 512 {CROPS}"),
    "ressl": Row("ReSSL", f"--method ressl {HEADS} --queue_size {QUEUE} --tau 0.99"),
    "lejepa": Row("LeJEPA", f"--method lejepa --hidden_mlp 512 --proj_dim 32 --directions 256 {CROPS}"),
    "clusterfit": Row(
        "ClusterFit (of RotNet, 1,000 clusters)",
        f"--method clusterfit --cluster_file {MODELS}/methods/rotnet-s{{seed}}.npz",
        needs=("rotnet",),
        before=(
            f"cifar10 {NETWORK} --data_folder {DATA} --train_dir train --val_dir test "
            f"--num_workers 1 --pretrained_feature_extractor {MODELS}/methods/rotnet-s{{seed}} --evaluation cluster "
            f"--num_clusters 1000 --cluster_output {MODELS}/methods/rotnet-s{{seed}}.npz --output {MODELS}/methods "
            "--run_id rotnet-s{seed}-clusters",
        ),
    ),
    "distill": Row(
        "distilled (SEED, from the SimCLR row's network)",
        f"--method distill --teacher test_resnet --teacher_weights {MODELS}/methods/simclr-s{{seed}} "
        f"--queue_size {QUEUE} {CROPS}",
        needs=("simclr",),
    ),
    "mae": Row(
        "MAE",
        "--method mae --decoder_dim 64 --decoder_layers 2 --decoder_heads 2 --pool avg",
        network=TRANSFORMER,
    ),
    "simclr_vit": Row("SimCLR, ViT", SIMCLR, network=TRANSFORMER),
    "ibot": Row(
        "iBOT",
        "--method ibot --hidden_mlp 256 --proj_dim 64 --num_prototypes 1024 --tau 0.99 --teacher_temperature 0.04 "
        f"--crop_scale 0.3 1.0 {CROPS}",
        network=TRANSFORMER,
    ),
    "nnclr_no_predictor": Row("NNCLR, no predictor", NNCLR.replace("--pred_hidden_mlp 512", "--no_predictor"), "nnclr"),
    "nnclr_top_k": Row("NNCLR, 3 neighbours, both views stored", f"{NNCLR} --top_k 3 --push_views 2", "nnclr"),
    "simclr_decoupled": Row("SimCLR, decoupled (DCL)", f"{SIMCLR} --decoupled", "simclr"),
    "simclr_decoupled_weights": Row(
        "SimCLR, decoupled, weighted (DCLW)", f"{SIMCLR} --decoupled --decoupled_weights", "simclr"
    ),
    "byol_neighbours": Row("BYOL with neighbours (NNBYOL)", f"{BYOL} --neighbours --queue_size {QUEUE}", "byol"),
    "simsiam_neighbours": Row(
        "SimSiam with neighbours (NNSiam)", f"{SIMSIAM} --neighbours --queue_size {QUEUE}", "simsiam"
    ),
    "mocov2_symmetric": Row("MoCo v2+ (symmetric)", f"{MOCO} --symmetric", "mocov2"),
}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One run of a table: commands in their order, each (program, arguments), and the records that they leave.

    needs: names of runs of the same table that must be there before.
    """

    table: str
    name: str
    commands: tuple[tuple[str, str], ...]
    records: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def is_done(self) -> bool:
        """Whether the ledger has all records of this run."""
        return all((HERE / self.table / f"{record}.json").is_file() for record in self.records)


PRETRAIN, EVALUATE = "main_contrastive.py", "main_linear.py"


def search_runs() -> Iterator[Run]:
    """The search of rate and decay: the same settings for every method, fewer images and epochs, held-out images."""
    data = f"--data_folder {DATA}-search --train_dir train --val_dir held_out"
    for name, row in METHODS.items():
        if row.searched or row.needs:
            continue
        flags = row.flags.replace(f"--queue_size {QUEUE}", f"--queue_size {QUEUE // 4}")  # there are 10,000 images
        for settings in zip(*SEARCHED.values(), strict=True):
            chosen = " ".join(f"{flag} {value:g}" for flag, value in zip(SEARCHED, settings, strict=True))
            run_id = f"{name}-lr{settings[0]:g}-wd{settings[1]:g}"
            words = (
                f"cifar10 {row.network} {data} {flags} --epochs 8 --warmup_epochs 1 {TRAINING} {chosen} --knn_every 8 "
                f"{_record('search', run_id)}"
            )
            yield Run("search", run_id, ((PRETRAIN, words),), (run_id,))


def method_runs() -> Iterator[Run]:
    """All methods with equal budget: one seed of each, then the next one. Rows that await their search are left out."""
    for seed in SEEDS:
        for name, row in METHODS.items():
            found = chosen_settings(row.searched or ("simclr" if row.needs else name))
            if found is None:
                continue
            settings = " ".join(f"{flag} {value:g}" for flag, value in found.items())
            run_id = f"{name}-s{seed}"
            flags = row.flags.format(seed=seed)
            data = f"--data_folder {DATA} --train_dir train --val_dir test"
            pretrain = (f"cifar10 {row.network} {data} {flags} --epochs 20 --warmup_epochs 1 {TRAINING} {settings} "
                        f"--knn_every 20 --seed {seed} {_record('methods', run_id)}")  # fmt: skip
            evaluate = (f"cifar10 {row.network} {data} --pretrained_feature_extractor {MODELS}/methods/{run_id} "
                        f"--evaluation knn logistic --label_fraction 0.01 0.1 1 --baselines --num_workers 1 "
                        f"--seed {seed} {_record('methods', f'{run_id}-evaluated')}")  # fmt: skip
            before = tuple((EVALUATE, arguments.format(seed=seed)) for arguments in row.before)
            yield Run("methods", run_id, (*before, (PRETRAIN, pretrain), (EVALUATE, evaluate)),
                      (run_id, f"{run_id}-evaluated"), tuple(f"{need}-s{seed}" for need in row.needs))  # fmt: skip


TABLES = {"search": search_runs, "methods": method_runs}


def _record(table: str, run_id: str) -> str:
    return f"--output {MODELS}/{table} --run_id {run_id} --record results/{table}"


def read_record(table: str, name: str) -> dict[str, Any] | None:
    """The record of a run, or None where the ledger has none."""
    path = HERE / table / f"{name}.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@cache
def chosen_settings(name: str) -> Mapping[str, float] | None:
    """The searched flags of a method with the best kNN on held-out images; None before all of them were tried."""
    tried = []
    for settings in zip(*SEARCHED.values(), strict=True):
        record = read_record("search", f"{name}-lr{settings[0]:g}-wd{settings[1]:g}")
        if record is None:
            return None
        tried.append((record["scores"]["knn_20"]["value"], settings))
    return dict(zip(SEARCHED, max(tried)[1], strict=True))
