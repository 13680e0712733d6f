"""Accelerator, devices, precision."""

import pytest
import torch

from utils.errors import UserError
from utils.hardware import choose_hardware, choose_precision, local_device
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
