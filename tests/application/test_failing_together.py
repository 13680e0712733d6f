"""Two processes of which one fails, before or after they have found each other: both end within seconds, with one line
that names the one that failed. `make test` proves the logic in tests/utils/test_peers.py."""

import pytest
import torch

from tests.helpers.checkpoints import NAME, new_network
from tests.helpers.commands import start, words
from tests.helpers.faults import errors, run_with_fault

SECONDS = 60  # from the failure to the end of the command; 3 on a machine that does nothing else
NOW = "print('NOW', flush=True)"
BROKEN = f"({NOW}, throw(UserError('a.png is broken; repair it')))"
KILL = f"({NOW}, os.kill(os.getpid(), signal.SIGKILL))"
BEFORE = "if launched_rank() == {rank}:\n    application.build_pipeline = lambda *_: {fault}\n"
FORMING = (  # the other process waits for the group
    "import time\nfrom runs.strategy import DDPStrategy\n"
    "if launched_rank() == {rank}:\n"
    "    DDPStrategy.setup_distributed = lambda *_: (time.sleep(10), {fault})\n"
)
STEP = "at_step(2, lambda: {fault}, of={rank})"
KILLED = "process {} of 2: ended without a word"

FAULTS = {  # name: (the fault, the rank, what it does, the launchers, what is printed, tracebacks)
    "mistake before": (BEFORE, 1, BROKEN, "lightning torchrun", "process 1 of 2: a.png is broken", 0),
    "mistake while forming": (FORMING, 1, BROKEN, "lightning torchrun", "process 1 of 2: a.png is broken", 0),
    "killed while forming": (FORMING, 1, KILL, "lightning", "process 1 was ended by SIGKILL", 0),
    "first one killed while forming": (FORMING, 0, KILL, "lightning", "", 0),
    "mistake": (STEP, 1, BROKEN, "lightning torchrun", "process 1 of 2: a.png is broken", 0),
    "mistake of the first one": (STEP, 0, BROKEN, "lightning torchrun", "process 0 of 2: a.png is broken", 0),
    "memory": (STEP, 1, f"({NOW}, throw(MemoryError('7 GiB')))", "lightning", "process 1 of 2: MemoryError: 7 GiB", 0),
    "defect": (STEP, 1, f"({NOW}, throw(KeyError('x')))", "lightning torchrun", "process 1 of 2: KeyError: 'x'", 1),
    "killed": (STEP, 1, KILL, "lightning torchrun", KILLED.format(1), 0),
    "first one killed": (STEP, 0, KILL, "lightning torchrun", KILLED.format(0), 0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "launcher"), [(n, how) for n, f in FAULTS.items() for how in f[3].split()])
def test_failure_of_one_process_ends_both_with_one_line(tmp_path, name, launcher):
    fault, rank, what, _, said, tracebacks = FAULTS[name]
    argv = words("simclr", tmp_path, "--batch_size", "128", "--knn_every", "0", "--run_id", "r")
    code, printed, seconds = run_with_fault(tmp_path, argv, fault.format(rank=rank, fault=what), launcher)
    assert code != 0
    assert seconds < SECONDS
    lines = errors(printed)
    assert len(lines) == bool(said), printed
    assert not said or said in lines[0], printed
    # torchrun itself ends with a traceback.
    assert printed.count("Traceback") == tracebacks + (launcher == "torchrun"), printed


@pytest.mark.slow
def test_unreadable_image_of_one_process_ends_both(tmp_path):
    fault = (
        "import data.images\n"
        "whole = data.images.ArrayImages.decode\n"
        f"broken = lambda: {BROKEN}\n"
        "data.images.ArrayImages.decode = lambda self, i: broken() if launched_rank() == 1 else whole(self, i)\n"
    )
    argv = words("simclr", tmp_path, "--batch_size", "128", "--run_id", "r", "--knn_every", "1",
                 "--pipeline", "torchvision", "--num_workers", "0")  # fmt: skip
    code, printed, seconds = run_with_fault(tmp_path, argv, fault, "torchrun")
    assert code != 0
    assert seconds < SECONDS
    assert set(errors(printed)) == {"error: process 1 of 2: a.png is broken; repair it"}, printed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_evaluation_that_fails_on_one_process_ends_both(tmp_path, rank):
    fault = (
        "import evaluation.features\nwhole = evaluation.features.raise_together\n"
        f"def raise_together(error):\n    if rank() == {rank}:\n        error = {NOW} or UserError('a.png is broken')\n"
        "    whole(error)\nevaluation.features.raise_together = raise_together\n"
    )
    torch.save(new_network().state_dict(), tmp_path / "weights.pth")
    argv = ["digits", NAME, "--pretrained_feature_extractor", str(tmp_path / "weights.pth"), "--evaluation", "knn",
            "--output", str(tmp_path), "--num_workers", "0", "--accelerator", "cpu"]  # fmt: skip
    code, printed, seconds = run_with_fault(tmp_path, argv, fault, "torchrun", main="main_linear")
    assert code != 0
    assert seconds < SECONDS
    assert errors(printed) == [f"error: process {rank} of 2: a.png is broken"], printed


@pytest.mark.slow
def test_training_goes_on_when_the_reader_of_its_output_leaves(tmp_path):
    process = start(["main_contrastive.py", *words("simclr", tmp_path, "--steps", "2", "--run_id", "r")])
    assert "simclr on digits" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert (tmp_path / "r" / "last.ckpt").exists()
    assert (tmp_path / "r" / "summary.json").exists()
