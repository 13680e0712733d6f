"""The application as a user types it: a whole run, a stopped one, mistakes."""

import json
import math
import re
import signal
import time

import pytest
import torch

import main_contrastive
from methods import METHODS
from methods.base import Method
from runs.callbacks import ProgressBar
from tests.helpers.commands import TINY, evaluate_run, small, start, words
from tests.helpers.images import BAD, class_folders, pile, spoil, write_image
from utils.errors import Interrupted, UserError
from utils.files import read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")
CLOCK = ("images_per_second", "data_wait")


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def same(a, b):
    """Two checkpoints: every tensor to the bit, every number equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return a == b


def assert_same_run(a, b):
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(weights(a)[part], weights(b)[part]), part
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(f / "metrics.csv")] for f in (a, b)
    ]
    kept = [[row for row in part if any(v for k, v in row.items() if k not in ("step", "epoch"))] for part in rows]
    assert kept[0] == kept[1]


def interrupt_at(monkeypatch, step):
    """A real SIGINT arrives in the middle of a training step."""
    original, pressed = ProgressBar.on_train_batch_end, []

    def press(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", press)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        # Methods without a queue or a teacher have nothing more to save than SimCLR has.
        *(pytest.param(m, "", marks=[] if m in ("byol", "nnclr", "simclr") else pytest.mark.slow) for m in METHODS),
        ("nnclr", "--pipeline torchvision --small_views 2 --small_size 8"),
        ("simclr", "--pipeline stream --num_workers 2 --small_views 2 --small_size 8"),
        ("byol", "--small_views 2 --small_size 8 --clip_grad 0.5"),
    ],
)
def test_stopped_in_the_middle_of_an_epoch_and_resumed_is_never_stopped(tmp_path, monkeypatch, few, method, more):
    argv = ["custom", *words(method, tmp_path, *few, *more.split())[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    if method == "nnclr":  # the others differ in their losses, not in where their randomness comes from
        main_contrastive.main([*argv, "--run_id", "twice"])
        assert_same_run(tmp_path / "whole", tmp_path / "twice")
    with monkeypatch.context() as m:
        interrupt_at(m, 8)  # of 5 steps per epoch
        with pytest.raises(Interrupted, match=r"after step 8; go on with: .* --resume"):
            main_contrastive.main([*argv, "--run_id", "stopped"])
    assert weights(tmp_path / "stopped")["global_step"] == 8
    assert not same(weights(tmp_path / "stopped")["state_dict"], weights(tmp_path / "whole")["state_dict"])
    main_contrastive.main(["--resume", str(tmp_path / "stopped")])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("step", "more"),
    [(5, []), (6, []), (14, []), (3, ["--accumulate", "2", "--queue_size", "600"]), (4, ["--steps", "7"])],
    ids=["last step of an epoch", "first step of an epoch", "before the last step", "accumulating", "counted in steps"],
)
def test_stopped_at_awkward_places(tmp_path, monkeypatch, few, step, more):
    argv = ["custom", *words("nnclr", tmp_path, *few, *more)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    with monkeypatch.context() as m:
        interrupt_at(m, step)
        with pytest.raises(Interrupted):
            main_contrastive.main([*argv, "--run_id", "stopped"])
    main_contrastive.main(["--resume", str(tmp_path / "stopped"), "--num_workers", "0"])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("step", [6, 9, 13])
def test_killed_and_resumed_from_the_last_epoch(tmp_path, monkeypatch, few, step):
    """No warning, as by a power cut: the run goes on from the end of the epoch before."""
    argv = ["custom", *words("nnclr", tmp_path, *few)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])

    def die(self, trainer, *args):
        if trainer.global_step == step:
            raise RuntimeError("power cut")

    with monkeypatch.context() as m:
        m.setattr(ProgressBar, "on_train_batch_end", die)
        with pytest.raises(RuntimeError, match="power cut"):
            main_contrastive.main([*argv, "--run_id", "killed"])
    assert weights(tmp_path / "killed")["global_step"] == step // 5 * 5
    main_contrastive.main(["--resume", str(tmp_path / "killed")])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_resumes_to_nothing_more(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--run_id", "r"])
    before = weights(tmp_path / "r")["state_dict"]
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    main_contrastive.main(["--resume", str(tmp_path / "r")])
    assert same(before, weights(tmp_path / "r")["state_dict"])
    assert rows == read_metrics(tmp_path / "r" / "metrics.csv")


def test_the_seed_decides(tmp_path, few):
    for seed in ("1", "2"):
        argv = words("simclr", tmp_path, *few, "--steps", "2", "--seed", seed, "--run_id", seed)
        main_contrastive.main(["custom", *argv[1:]])
    assert not same(weights(tmp_path / "1")["state_dict"], weights(tmp_path / "2")["state_dict"])


@pytest.mark.pictures
def test_a_run_leaves_what_the_design_says(tmp_path, few, capsys):
    main_contrastive.main(["custom", *words("nnclr", tmp_path, *few)[1:], "--run_id", "r"])
    folder = tmp_path / "r"
    names = {"args.json", "metrics.csv", "last.ckpt", "backbone.safetensors", "summary.json", "curves.png",
             "neighbours.png", "embedding.png"}  # fmt: skip
    assert {p.name for p in folder.iterdir()} == names
    args = json.loads((folder / "args.json").read_text())
    assert args["typed"]["queue_size"] == 300
    assert args["resolved"]["scaled_lr"] == pytest.approx(0.3 * 12 / 256)
    assert {"argv", "lookalike", "commit", "packages"} <= args.keys()
    assert args["resolved"]["fingerprint"]
    summary = json.loads((folder / "summary.json").read_text())
    wanted = {"loss", "val_probe_acc", "knn_5", "images_per_second", "seconds", "peak_memory_bytes"}
    assert wanted <= summary.keys()
    rows = read_metrics(folder / "metrics.csv")
    assert [int(r["step"]) for r in rows if r["loss"]] == list(range(15))
    assert sum(bool(r["knn_5"]) for r in rows) == 2, "after epochs 2 and 3"
    assert {"nn_label_acc", "nn_similarity", "nn_distinct", "queue_fill", "queue_age"} <= rows[0].keys()
    said = capsys.readouterr().out
    assert "epoch 3/3" in said
    assert "0.3 x 12 / 256 = 0.0140625" in said
    evaluate_run(tmp_path, "r", few)
    table = capsys.readouterr().out
    for word in ("raw pixels", "untrained", "nnclr", "linear probe", "kNN 5", "15 labels"):
        assert word in table
    assert json.loads((tmp_path / "evaluated" / "summary.json").read_text()).keys() >= {"raw pixels"}


def test_pretraining_starts_from_given_weights(tmp_path, few, capsys):
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--lr", "1e-30", "--weight_decay", "0"]
    main_contrastive.main([*argv, "--seed", "5", "--run_id", "first"])
    main_contrastive.main([*argv, "--run_id", "second", "--pretrained_feature_extractor", str(tmp_path / "first")])
    said = capsys.readouterr().out
    assert re.search(r"loaded +\d+ +conv1", said)
    a, b = (weights(tmp_path / run)["state_dict"] for run in ("first", "second"))
    names = [k for k in a if k.startswith("backbone.") and k.endswith("weight")]
    assert names
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-20) for k in names), "seed 5, though this run's own is 0"
    again = [*argv, "--run_id", "dry", "--pretrained_feature_extractor", str(tmp_path / "first" / "last.ckpt")]
    main_contrastive.main([*again, "--dry_run"])
    assert "found under state_dict backbone.*" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    told = mistake(
        [
            *argv,
            "--pretrained_feature_extractor",
            str(tmp_path / "first"),
            "--remove_prefix",
            "x",
            "--append_prefix",
            "y",
        ]
    )
    assert "does not fit the backbone: 0 tensors found" in told


@pytest.mark.pictures
def test_a_pile_of_images_trains_without_labels(tmp_path, capsys):
    for i in range(20):
        write_image(tmp_path / "pile" / f"{i}.png", seed=i)
    main_contrastive.main(["custom", TINY[1], "--data_folder", str(tmp_path / "pile"), "--method", "nnclr",
                           *small("nnclr"), "--batch_size", "8", "--epochs", "2", "--large_size", "32", "--log_every",
                           "1", "--output", str(tmp_path), "--run_id", "r", "--precision", "32"])  # fmt: skip
    columns = read_metrics(tmp_path / "r" / "metrics.csv")[0].keys()
    assert not {c for c in columns if "probe" in c or "knn" in c or c == "nn_label_acc"}
    assert {p.name for p in (tmp_path / "r").glob("*.png")} == {"curves.png", "neighbours.png", "embedding.png"}
    assert "a pile of 20 images without labels" in capsys.readouterr().out


def test_labels_play_no_part(tmp_path):
    """The same images under other labels give the same backbone: the probe's gradient ends at the features."""
    results = []
    for name, classes in (("two", 2), ("four", 4)):
        root = class_folders(tmp_path / name / "train", classes=2, each=16)
        if classes == 4:  # split each class in two without changing the order of the images
            for c in range(2):
                for half in ("a", "b"):
                    (root / f"c{c}{half}").mkdir()
                for i, path in enumerate(sorted((root / f"c{c}").iterdir())):
                    path.rename(root / f"c{c}{'a' if i < 8 else 'b'}" / path.name)
                (root / f"c{c}").rmdir()
        main_contrastive.main(["custom", TINY[1], "--data_folder", str(tmp_path / name), "--large_size", "16",
                               "--batch_size", "8", "--epochs", "3", "--precision", "32", "--output", str(tmp_path),
                               "--run_id", f"run-{name}", "--hidden_mlp", "16"])  # fmt: skip
        results.append(torch.load(tmp_path / f"run-{name}" / "last.ckpt", weights_only=True)["state_dict"])
    shared = [k for k in results[0] if not k.startswith("probe.")]
    assert all(torch.equal(results[0][k], results[1][k]) for k in shared)


def mistake(argv):
    with pytest.raises(UserError) as e:
        main_contrastive.main(argv)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_mistakes_are_found_before_training_and_leave_nothing(tmp_path):
    out = tmp_path / "runs"
    base = [*TINY, "--output", str(out)]
    assert "unknown backbone 'resnet1'" in mistake(["digits", "resnet1", "--output", str(out)])
    assert "fewer than one global batch" in mistake([*base, "--batch_size", "5000"])
    assert "needs labels and custom has none here" in mistake(["custom", TINY[1], "--data_folder", pile(tmp_path),
                    "--supervised", "--batch_size", "4", "--output", str(out), "--large_size", "16"])  # fmt: skip
    for method in ("barlow_twins", "rotnet"):
        assert "--small_views 2: " in mistake([*base, "--method", method, "--small_views", "2"])
    assert "smaller than the global batch" in mistake([*base, "--method", "nnclr", "--queue_size", "100"])
    assert "is not a folder" in mistake(
        ["imagenet", TINY[1], "--data_folder", str(tmp_path / "gone"), "--output", str(out)]
    )
    class_folders(tmp_path / "train")
    (tmp_path / "train" / "c0" / "0.png").write_bytes(b"broken")
    for pipeline in ("memory", "stream", "torchvision"):
        told = mistake(["custom", TINY[1], "--data_folder", str(tmp_path), "--output", str(out), "--batch_size", "4",
                        "--large_size", "32", "--pipeline", pipeline])  # fmt: skip
        assert "0.png" in told
    assert "no last.ckpt" in mistake(["--resume", str(tmp_path)])
    assert not out.exists()


def test_a_resumed_run_may_not_change(tmp_path):
    main_contrastive.main(words("simclr", tmp_path, "--steps", "1", "--run_id", "r"))
    run = str(tmp_path / "r")
    assert "--epochs 9 differs from the run's 3" in mistake(["--resume", run, "--epochs", "9"])
    assert "global batch of 128 differs" in mistake(["--resume", run, "--batch_size", "128"])
    assert "already holds a run" in mistake(words("simclr", tmp_path, "--run_id", "r"))


def test_bad_images_are_left_out_as_if_they_were_not_there(tmp_path, few, capsys):
    """The same run to the bit; listed; and a resumed run needs the images that it began with."""
    argv = ["custom", *words("simclr", tmp_path, *few)[1:]]
    main_contrastive.main([*argv, "--run_id", "clean"])
    root = tmp_path / "images"
    bad = [*spoil(root / "train" / "c1"), *spoil(root / "val" / "c0")]
    told = mistake([*argv, "--run_id", "r"])
    assert f"{len(BAD)} of {60 + len(BAD)} files in {root / 'train'} are not readable images (c1/cut.jpg, " in told
    assert told.endswith("or pass --on_bad_image skip")
    assert not (tmp_path / "r").exists()
    capsys.readouterr()
    argv += ["--on_bad_image", "skip"]
    main_contrastive.main([*argv, "--run_id", "r"])
    assert_same_run(tmp_path / "clean", tmp_path / "r")
    said = capsys.readouterr().out
    assert "simclr on custom: 60 training images, 3 classes" in said
    assert said.count("are not readable images and left out (c") == 2, "one note of each split"
    lines = (tmp_path / "r" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in bad]
    assert all(line.split("\t")[1] for line in lines)
    assert not (tmp_path / "clean" / "bad_images.txt").exists()

    run = tmp_path / "r"
    bad[0].unlink()
    main_contrastive.main(["--resume", str(run)])  # bad files may go
    image = root / "train" / "c2" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-200])
    assert "the training images are not those that the run began with" in mistake(["--resume", str(run)])
    image.write_bytes(whole)
    main_contrastive.main(["--resume", str(run)])
    assert "--on_bad_image stop differs from the run's skip" in mistake(
        ["--resume", str(run), "--on_bad_image", "stop"]
    )


@pytest.mark.parametrize("pipeline", ["stream", "torchvision"])
def test_an_image_lost_half_way_stops_the_run_that_goes_on_once_it_is_back(tmp_path, few, monkeypatch, pipeline):
    more = ["--on_bad_image", "skip", "--pipeline", pipeline]
    argv = ["custom", *words("simclr", tmp_path, *few, *more)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    image = tmp_path / "images" / "train" / "c2" / "3.png"
    content = image.read_bytes()
    original = ProgressBar.on_train_batch_end

    def damage(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 6:  # of 5 steps per epoch
            image.write_bytes(content[:-500])

    with monkeypatch.context() as m:
        m.setattr(ProgressBar, "on_train_batch_end", damage)
        told = mistake([*argv, "--run_id", "r"])
    assert re.search(r"c2/3\.png is not a readable image \(.*\); repair .* --resume only with the file as it was", told)
    assert "the training images are not those that the run began with" in mistake(["--resume", str(tmp_path / "r")])
    image.write_bytes(content)
    main_contrastive.main(["--resume", str(tmp_path / "r")])
    assert_same_run(tmp_path / "whole", tmp_path / "r")


def test_many_more_workers_than_cores_are_told(tmp_path, few, capsys, monkeypatch):
    monkeypatch.setattr("data.pipelines.choose.usable_cores", lambda: 2)
    argv = ["custom", *words("simclr", tmp_path, *few, "--pipeline", "stream", "--steps", "1")[1:]]
    for workers, told in ((4, False), (5, True)):
        main_contrastive.main([*argv, "--num_workers", str(workers), "--run_id", str(workers)])
        assert ("note: 5 workers share 2 cores" in capsys.readouterr().out) is told


def test_an_infinite_loss_stops_the_run_with_advice(tmp_path):
    argv = words("simclr", tmp_path, "--lr", "1e30", "--run_id", "r")
    assert re.search(r"the loss is (nan|inf) at step \d+; lower --lr", mistake(argv))


def test_ctrl_c_in_a_terminal(tmp_path):
    argv = words("simclr", tmp_path, "--run_id", "r", "--epochs", "500", "--knn_every", "0")
    process = start(["main_contrastive.py", *argv])
    metrics, deadline = tmp_path / "r" / "metrics.csv", time.time() + 120
    while not (metrics.exists() and metrics.stat().st_size > 300) and time.time() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "go on with: python3 main_contrastive.py --resume" in said
    assert "Traceback" not in said
    assert weights(tmp_path / "r")["global_step"] > 0


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("byol", ["--small_views", "2"]),
        pytest.param("nnclr", ["--temperature", "1", "--queue_size", "600"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_what_one_does(tmp_path, method, more):
    """torchrun on CPU: the same images, views, losses, queue and teacher as one process with twice the batch."""
    # A short, flat start: at the paper's temperature the first steps amplify rounding, as another thread count does.
    common = words(method, tmp_path, "--lr", "0.0001", "--steps", "8", *more)
    main_contrastive.main([*common, "--run_id", "one"])
    argv = [*common, "--run_id", "two", "--batch_size", "128"]
    process = start(["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611",
                     "main_contrastive.py", *argv])  # fmt: skip
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    one, two = (read_metrics(tmp_path / r / "metrics.csv") for r in ("one", "two"))
    losses = [[float(r["loss"]) for r in rows if r["loss"]] for rows in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (weights(tmp_path / r)["state_dict"] for r in ("one", "two"))
    assert a.keys() == b.keys()
    if method == "byol":
        assert a["target.tau"] == b["target.tau"]
        for key in (k for k in a if ".teacher." in k and k.endswith("weight")):
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)
        return
    assert torch.equal(a["queue.labels"], b["queue.labels"]), "the same images in the same places of the queue"
    torch.testing.assert_close(a["queue.rows"][:256], b["queue.rows"][:256], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("method", "more"), [("byol", []), ("nnclr", ["--queue_size", "600"])])
def test_accumulation_moves_teachers_and_queues_once_per_step(tmp_path, few, monkeypatch, method, more):
    """5 batches an epoch, 2 to a step: three steps, the last of one batch; tau follows the steps of the run."""
    moved = []
    whole = Method.after_optimizer_step
    monkeypatch.setattr(Method, "after_optimizer_step", lambda self, done: (moved.append(done), whole(self, done))[0])
    argv = ["custom", *words(method, tmp_path, *few, "--accumulate", "2", "--run_id", "r", *more)[1:]]
    main_contrastive.main(argv)
    assert moved == pytest.approx([step / 9 for step in range(9)])
    state = weights(tmp_path / "r")["state_dict"]
    if method == "byol":
        assert state["target.tau"].item() == pytest.approx(1 - 0.004 * (1 + math.cos(math.pi * 8 / 9)) / 2)
    else:
        assert state["queue.pointer"] == 3 * 5 * 12
        assert state["queue.age"].max() == 8, "pushes are steps, not batches"


def test_weights_and_biases_offline(tmp_path, few, monkeypatch):
    """The dashboard gets the numbers and the pictures, without a network and without leaving the run folder."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--wandb", "--offline", "--run_id", "r", "--name", "mine"]
    process = start(["main_contrastive.py", *argv, "--project", "p"])
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    (offline,) = (tmp_path / "r" / "wandb").glob("offline-run-*-r")
    logged = {p.name.split("_")[0] for p in (offline / "files" / "media" / "images").glob("*.png")}
    assert logged == {"curves", "neighbours", "embedding"}
    assert b"val_probe_acc" in next(offline.glob("*.wandb")).read_bytes()
