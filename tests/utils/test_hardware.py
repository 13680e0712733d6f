"""Accelerator, devices, precision."""

import os

import pytest
import torch

from tests.helpers.runs import slurm_job
from utils import hardware
from utils.errors import UserError
from utils.hardware import choose_hardware, choose_precision, local_device, start_processes
from utils.plan import HardwareConfig


def pretend_gpus(monkeypatch, count):
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


def test_choose_hardware_refuses_gpus_that_are_not_there(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match="--gpus 0 1: no CUDA device is available"):
        choose_hardware("auto", [0, 1])
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="has GPUs 0 to 1"):
        choose_hardware("auto", [0, 2])


def test_choose_hardware_takes_the_cpu_of_a_gpu_machine_when_asked(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_hardware("auto", None).accelerator == "cuda"
    assert choose_hardware("auto", None).processes == 2
    config = choose_hardware("cpu", None)
    assert (config.accelerator, config.processes) == ("cpu", 1)
    assert local_device(config).type == "cpu"


def test_choose_hardware_refuses_an_accelerator_that_is_not_there(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--accelerator {name} is not available here; choose auto or one of cpu"):
            choose_hardware(name, None)


def test_choose_hardware_counts_the_processes_of_a_launcher(monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    pretend_gpus(monkeypatch, 0)
    config = choose_hardware("auto", None)
    assert (config.nodes, config.devices, config.processes) == (2, 2, 4)


def test_local_device_is_the_one_of_this_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device(HardwareConfig("cuda", [3, 5], 1, 2)) == torch.device("cuda", 5)
    assert local_device(HardwareConfig("cuda", 2, 1, 2)) == torch.device("cuda", 1)


def slurm_task(monkeypatch, rank, nodes, per_node):
    """The variables of one of several tasks that srun started."""
    slurm_job(monkeypatch)
    variables = {"NTASKS": nodes * per_node, "NTASKS_PER_NODE": per_node, "NNODES": nodes, "PROCID": rank,
                 "LOCALID": rank % per_node, "NODEID": rank // per_node}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.fixture
def executed(monkeypatch):
    """The command lines that replace this process."""
    for name in ("LOCAL_RANK", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    lines = []
    monkeypatch.setattr("os.execv", lambda program, argv: lines.append(argv))
    monkeypatch.setattr(hardware, "usable_cores", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: lines.append(number))
    return lines


def test_start_processes_starts_one_per_gpu_where_no_launcher_did(monkeypatch, executed):
    pretend_gpus(monkeypatch, 4)
    start_processes(choose_hardware("auto", None), ["digits", "resnet18"])
    (line,) = executed
    assert line[line.index("--nproc_per_node") + 1] == "4"
    assert line[-2:] == ["digits", "resnet18"]
    assert os.environ["OMP_NUM_THREADS"] == "4", "else torchrun says 1"


@pytest.mark.parametrize("rank", [0, 5])
def test_start_processes_leaves_the_tasks_of_srun_alone(monkeypatch, executed, rank):
    """Each of them would start the processes of all machines."""
    pretend_gpus(monkeypatch, 4)
    slurm_task(monkeypatch, rank, nodes=2, per_node=4)
    config = choose_hardware("auto", None)
    start_processes(config, ["digits", "resnet18"])
    assert executed == []
    assert (config.nodes, config.devices, config.processes) == (2, 4, 8)
    assert local_device(config) == torch.device("cuda", rank % 4)


def test_start_processes_gives_the_processes_of_torchrun_their_share_of_the_cores(monkeypatch, executed):
    pretend_gpus(monkeypatch, 4)
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1",
                       "OMP_NUM_THREADS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    start_processes(choose_hardware("auto", None), [])
    assert executed == [4]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    start_processes(choose_hardware("auto", None), [])
    assert executed == [4], "what the user chose stays"


@pytest.mark.parametrize(("nodes", "per_node", "tasks"), [(2, "1", "3"), (1, None, "4")])
def test_choose_hardware_refuses_tasks_that_are_not_equally_many_on_each_machine(monkeypatch, nodes, per_node, tasks):
    slurm_task(monkeypatch, 0, nodes, 1)
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    if per_node is None:
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=rf"SLURM has {tasks} tasks on {nodes} machines.*--ntasks-per-node"):
        choose_hardware("cpu", None)


def test_choose_hardware_of_several_machines_needs_a_launcher(monkeypatch):
    with pytest.raises(UserError, match="--num_nodes 2 needs a launcher.*torchrun --nnodes 2, or srun"):
        choose_hardware("cpu", None, num_nodes=2)
    monkeypatch.setenv("NODE_RANK", "1")
    assert choose_hardware("cpu", None, num_nodes=2).processes == 2


@pytest.mark.parametrize(
    ("accelerator", "capabilities", "expected"),
    [("cpu", {"avx512_bf16": True}, "bf16-mixed"), ("cpu", {"amx_bf16": True}, "bf16-mixed"), ("cpu", {}, "32"),
     ("mps", {"avx512_bf16": True}, "32")],
)  # fmt: skip
def test_choose_precision_takes_bf16_where_the_hardware_has_it(monkeypatch, accelerator, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision(None, accelerator)[0] == expected
    assert choose_precision("32", accelerator) == ("32", "from the flag")


def test_choose_precision_refuses_half_precision_on_a_cpu():
    assert choose_precision("16-mixed", "cuda") == ("16-mixed", "from the flag")
    with pytest.raises(UserError, match="16-mixed needs a GPU"):
        choose_precision("16-mixed", "cpu")
