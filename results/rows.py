"""The rows of the tables of results: which flags make each, and what it builds on."""

from dataclasses import dataclass, replace
from typing import Any

MODELS = "trained_models"
EPOCHS = 20
DATA = "datasets/cifar10-jpeg"  # class folders train/ and test/ of CIFAR-10 (JPEG), see results/data.py
IMAGES = f"--data_folder {DATA} --train_dir train --val_dir test"
SEARCH_IMAGES = f"--data_folder {DATA}-search --train_dir train --val_dir held_out"  # 10,000 and 2,500 training images
PHOTOGRAPHS = "datasets/photographs"  # class folders of parts of photographs, see results/data.py
TRANSFER = {  # other images for the networks of METHODS: their words in a command, and the columns of their table
    "digits": (
        "digits {network} --evaluation knn logistic fewshot --shots 1 5 --draws 20",
        {"knn_20": "kNN 20", "logistic": "logistic", "fewshot_5/mean": "5-shot", "fewshot_1/mean": "1-shot"},
    ),
    "photographs": (
        f"custom {{network}} --data_folder {PHOTOGRAPHS} --train_dir shown --val_dir asked --evaluation knn "
        "--knn_k 1 5",
        {"knn_1": "kNN 1", "knn_5": "kNN 5"},
    ),
}
NETWORK = "test_resnet --stem imagenet"
TRANSFORMER = "test_vit --patch_size 4"
QUARTER = "resnet18x0.25 --stem small"
TRAINING = (
    "--batch_size 256 --optimizer adamw --scheduler warmup_cosine --precision bf16-mixed --num_workers 1 --log_every 20"
)
SEARCHED = {"--lr": (0.001, 0.002, 0.004, 0.002), "--weight_decay": (0.01, 0.01, 0.01, 0.1)}  # tried together
QUEUE = 16384
HEADS = "--hidden_mlp 512 --proj_dim 128"
WIDE = "--hidden_mlp 512 --proj_dim 512"
CROPS = "--jitter_strengths 0.8 0.8 0.8 0.2"
SIMCLR = f"--method simclr {HEADS} --temperature 0.2 {CROPS}"
PREDICTOR = "--pred_hidden_mlp 512"
NNCLR = f"--method nnclr {HEADS} {PREDICTOR} --temperature 0.2 --queue_size {QUEUE} {CROPS}"
TUNED = f"{NNCLR} --proj_layers 2"  # as many as SimCLR's
BYOL = f"--method byol {HEADS} --pred_hidden_mlp 512 --tau 0.98 {CROPS}"
SIMCLR_LIGHTLY = (
    f"--method simclr {HEADS} --temperature 0.5 --jitter_strengths 0.4 0.4 0.4 0.1 --blur 0 --optimizer sgd"
)
# The gradient of Lightly's BYOL loss is a quarter of ours: its 0.12 and 0.0005 of SGD are 0.03 and 0.002 here.
BYOL_LIGHTLY = (
    "--method byol --hidden_mlp 1024 --proj_dim 256 --pred_hidden_mlp 1024 --tau 0.99 --blur 0 --optimizer sgd"
)
DINO = (
    "--method dino --hidden_mlp 512 --proj_dim 64 --num_prototypes 2048 --tau 0.99 --head_norm "
    f"--teacher_temperature 0.04 --crop_scale 0.3 1.0 {CROPS}"
)
SIMSIAM = f"--method simsiam {WIDE} --pred_hidden_mlp 128 {CROPS}"
MOCO = f"--method mocov2 {HEADS} --queue_size {QUEUE} --temperature 0.2 --tau 0.99 {CROPS}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its title, the flags that make it, and what it builds on.

    settings: row of METHODS whose rate and weight decay it takes, its own where empty. rate, decay: in the place of
    these, where they are not 0. constant_decay: the decay stays as it was chosen, where the method's default raises it.
    network: another backbone. epochs: passes over the training images. needs: records that must be there, with {seed}.
    before: arguments of evaluation commands that run first.
    """

    title: str
    flags: str
    settings: str = ""
    network: str = NETWORK
    epochs: int = EPOCHS
    needs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    rate: float = 0.0
    decay: float = 0.0
    constant_decay: bool = False


def clusterfit(table: str, title: str, clusters: int, images: str, **settings: Any) -> Row:
    """A row of ClusterFit: k-means, of seed 0, on the features of the RotNet of the row's seed, then the training."""
    run = f"rotnet-{clusters}-s{{seed}}-clusters"
    file = f"{MODELS}/{table}/{run}.npz"
    arguments = (
        f"cifar10 {NETWORK} {images} --num_workers 1 --pretrained_feature_extractor {MODELS}/{table}/rotnet-s{{seed}} "
        f"--evaluation cluster --num_clusters {clusters} --cluster_output {file} --seed {{seed}} "
        f"{record_flags(table, run)}"
    )
    flags = f"--method clusterfit --cluster_file {file} {settings.pop('flags', '')}".strip()
    return Row(title, flags, "rotnet", needs=(f"{table}/rotnet-s{{seed}}",), before=(arguments,), **settings)


def record_flags(table: str, run_id: str) -> str:
    """The flags that name the run folder and the ledger of a run."""
    return f"--output {MODELS}/{table} --run_id {run_id} --record results/{table}"


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
    "dino": Row("DINO", DINO, constant_decay=True),
    "rotnet": Row("RotNet", "--method rotnet"),
    "mocov3": Row("MoCo v3", f"--method mocov3 {HEADS} --pred_hidden_mlp 512 --temperature 0.2 --tau 0.99 {CROPS}"),
    "deepclusterv2": Row("DeepCluster v2", f"--method deepclusterv2 {HEADS} --num_centroids 512 512 512 {CROPS}"),
    "ressl": Row("ReSSL", f"--method ressl {HEADS} --queue_size {QUEUE} --tau 0.99"),
    "lejepa": Row("LeJEPA", f"--method lejepa --hidden_mlp 512 --proj_dim 32 --directions 256 {CROPS}"),
    "clusterfit": clusterfit("methods", "ClusterFit (of RotNet, 1,000 clusters)", 1000, IMAGES),
    "distill": Row(
        "distilled (SEED, from the SimCLR row's network)",
        f"--method distill --teacher test_resnet --teacher_weights {MODELS}/methods/simclr-s{{seed}} "
        f"--queue_size {QUEUE} {CROPS}",
        settings="simclr",
        needs=("methods/simclr-s{seed}",),
    ),
    "mae": Row(
        "MAE",
        "--method mae --decoder_dim 64 --decoder_layers 2 --decoder_heads 2 --pool avg",
        network=TRANSFORMER,
    ),
    "simclr_vit": Row("SimCLR, ViT", SIMCLR, network=TRANSFORMER),
    "ibot": Row(
        "iBOT",
        "--method ibot --hidden_mlp 256 --proj_dim 64 --num_prototypes 256 --tau 0.98 --teacher_temperature 0.04 "
        f"--koleo 0.1 --clip_grad 0 --pool avg --crop_scale 0.3 1.0 {CROPS}",
        network=TRANSFORMER,
        constant_decay=True,
    ),
    "ijepa": Row(
        "I-JEPA",
        "--method ijepa --predictor_dim 64 --predictor_layers 2 --predictor_heads 2 --tau 0.99 --target_scale 0.05 0.1",
        network=TRANSFORMER,
        constant_decay=True,
    ),
    "nnclr_no_predictor": Row("NNCLR, no predictor", NNCLR.replace(PREDICTOR, "--no_predictor"), "nnclr"),
    "nnclr_tuned": Row("NNCLR, rate 0.008, 2 layers", TUNED, "simclr", rate=0.008),
    "nnclr_top_k": Row("NNCLR, 3 neighbours, both views stored", f"{NNCLR} --top_k 3 --push_views 2", "nnclr"),
    "simclr_lightly": Row("SimCLR, settings of Lightly", SIMCLR_LIGHTLY, "simclr", rate=0.12, decay=0.0005),
    "byol_lightly": Row("BYOL, settings of Lightly", BYOL_LIGHTLY, "byol", rate=0.03, decay=0.002),
    "byol_lightly_exactly": Row(
        "BYOL, settings of Lightly, constant tau, decay of norms",
        f"{BYOL_LIGHTLY} --final_tau 0.99 --decay_norms",
        "byol",
        rate=0.03,
        decay=0.002,
    ),
    "simclr_lightly_exactly": Row(
        "SimCLR, settings of Lightly, decay of norms",
        f"{SIMCLR_LIGHTLY} --decay_norms",
        "simclr",
        rate=0.12,
        decay=0.0005,
    ),
    "dino_rising_decay": Row(
        "DINO, decay that rises to 0.4",
        f"{DINO} --final_weight_decay 0.4",
        "dino",
        rate=0.004,
    ),
    "byol_constant": Row("BYOL, constant tau", f"{BYOL} --final_tau 0.98", "byol"),
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

NETWORKS = {  # candidates for the tables: title and the words of the command
    "test_resnet": NETWORK, "test_byobnet": "test_byobnet", "test_efficientnet": "test_efficientnet",
    "test_convnext": "test_convnext", "test_vit": TRANSFORMER, "resnet10t": "resnet10t --stem imagenet",
}  # fmt: skip
SMALL = "--small_views 4 --small_size 20 --small_scale 0.08 0.4"  # as many pixels as 1.56 views of 32 px
NO_COLOR = "--jitter 0 --gray 0 --blur 0 --solarize 0"
SHORT, LENGTH, LONG = 8, 24, 80  # epochs of the images of the search
EQUAL = 13  # epochs with SMALL that compute as much as LENGTH without: 24 * 2 / (2 + 1.56)


def with_short_queue(flags: str) -> str:
    """Flags of a row of METHODS with a queue for the images of the search, which are a fifth of all."""
    return flags.replace(f"--queue_size {QUEUE}", f"--queue_size {QUEUE // 4}")


def claim(title: str, flags: str, settings: str, epochs: int = LENGTH, **others: Any) -> Row:
    """A row of CLAIMS."""
    return Row(title, with_short_queue(flags), settings, epochs=epochs, **others)


def claim_of_clusterfit(title: str, clusters: int, flags: str = "") -> Row:
    return clusterfit("claims", title, clusters, SEARCH_IMAGES, flags=flags, epochs=LENGTH)


def claim_of_tuned_nnclr(title: str, flags: str = "", epochs: int = LENGTH) -> Row:
    """A row of NNCLR with the rate and the head of METHODS["nnclr_tuned"], and what its title and flags add."""
    row = METHODS["nnclr_tuned"]
    return claim(f"{row.title}{title}", f"{row.flags} {flags}".strip(), row.settings, epochs, rate=row.rate)


SAME_CLASS = ", neighbours of the image's class"
CLAIMS: dict[str, Row] = {  # what the papers claim, on the images of the search
    "simclr": claim("SimCLR", SIMCLR, "simclr"),
    "nnclr": claim("NNCLR, queue of 4,096", NNCLR, "nnclr"),
    "simclr_crops_only": claim("SimCLR, crops and flips only", SIMCLR.replace(CROPS, NO_COLOR), "simclr"),
    "nnclr_crops_only": claim("NNCLR, crops and flips only", NNCLR.replace(CROPS, NO_COLOR), "nnclr"),
    "simclr_short": claim("SimCLR, 8 epochs", SIMCLR, "simclr", SHORT),
    "nnclr_short": claim("NNCLR, 8 epochs", NNCLR, "nnclr", SHORT),
    "simclr_long": claim("SimCLR, 80 epochs", SIMCLR, "simclr", LONG),
    "nnclr_long": claim("NNCLR, 80 epochs", NNCLR, "nnclr", LONG),
    "nnclr_queue_512": claim("NNCLR, queue of 512", NNCLR.replace(str(QUEUE), "512"), "nnclr"),
    "nnclr_queue_9984": claim("NNCLR, queue of 9,984", NNCLR.replace(str(QUEUE), "9984"), "nnclr"),
    "simclr_rate_8": claim("SimCLR, rate 0.008", SIMCLR, "simclr", rate=0.008),
    "simclr_rate_16": claim("SimCLR, rate 0.016", SIMCLR, "simclr", rate=0.016),
    "nnclr_rate_4": claim("NNCLR, rate 0.004", NNCLR, "simclr", rate=0.004),
    "nnclr_rate_8": claim("NNCLR, rate 0.008", NNCLR, "simclr", rate=0.008),
    "nnclr_rate_16": claim("NNCLR, rate 0.016", NNCLR, "simclr", rate=0.016),
    "nnclr_tuned": claim_of_tuned_nnclr(""),
    "nnclr_tuned_same_class": claim_of_tuned_nnclr(SAME_CLASS, "--same_class_neighbours"),
    "nnclr_tuned_same_class_long": claim_of_tuned_nnclr(f"{SAME_CLASS}, 80 epochs", "--same_class_neighbours", LONG),
    "nnclr_tuned_no_predictor": replace(
        claim_of_tuned_nnclr(", no predictor"), flags=with_short_queue(TUNED.replace(PREDICTOR, "--no_predictor"))
    ),
    "nnclr_tuned_long": claim_of_tuned_nnclr(", 80 epochs", epochs=LONG),
    "supcon": claim("SupCon (labels)", f"{SIMCLR} --supervised", "supcon"),
    "rotnet": claim("RotNet", "--method rotnet", "rotnet"),
    "rotnet_longer": claim("RotNet, twice the epochs", "--method rotnet", "rotnet", 2 * LENGTH),
    "rotnet_colours": claim(
        "RotNet, colours changed as for SimCLR", f"--method rotnet --jitter 0.8 --gray 0.2 --blur 0.5 {CROPS}", "rotnet"
    ),
    "clusterfit_100": claim_of_clusterfit("ClusterFit of RotNet, 100 clusters", 100),
    "clusterfit_500": claim_of_clusterfit("ClusterFit of RotNet, 500 clusters", 500),
    "clusterfit_2000": claim_of_clusterfit("ClusterFit of RotNet, 2,000 clusters", 2000),
    "clusterfit_shuffled": replace(
        claim_of_clusterfit("ClusterFit of RotNet, 500 clusters, shuffled ids", 500, "--shuffle_clusters"),
        before=(),
        needs=("claims/rotnet-500-s{seed}-clusters",),
    ),
    "simclr_small_views": claim("SimCLR, 2 + 4 views, equal compute", f"{SIMCLR} {SMALL}", "simclr", EQUAL),
    "swav": claim("SwAV", METHODS["swav"].flags, "swav"),
    "swav_small_views": claim("SwAV, 2 + 4 views, equal compute", f"{METHODS['swav'].flags} {SMALL}", "swav", EQUAL),
    "simclr_batch_64": claim("SimCLR, batch 64", f"{SIMCLR} --batch_size 64", "simclr"),
    "simclr_batch_1024": claim("SimCLR, batch 1,024", f"{SIMCLR} --batch_size 1024", "simclr"),
    "simclr_quarter": claim("SimCLR, ResNet-18 at quarter width", SIMCLR, "simclr", network=QUARTER),
    "nnclr_quarter": claim("NNCLR, ResNet-18 at quarter width", NNCLR, "nnclr", network=QUARTER),
    "simclr_vit": claim("SimCLR, small ViT", SIMCLR, "simclr", network=TRANSFORMER),
    "nnclr_vit": claim("NNCLR, small ViT", NNCLR, "nnclr", network=TRANSFORMER),
}
