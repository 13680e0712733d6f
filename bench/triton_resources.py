"""Registers and spills of the Triton kernels of the views, compiled here for GPUs that need not be here.

python3 -m bench.triton_resources            for sm_80 (A100), sm_90 (H100) and sm_100 (B200)
python3 -m bench.triton_resources 90         for one of them
"""

import re
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError, run_cli

TARGETS = (80, 90, 100)  # compute capabilities
SIZE = 224  # pixels of the views that the kernels are compiled for


class Resources(NamedTuple):
    """What a thread of a kernel takes: registers, and bytes of registers that are stored to memory and loaded again."""

    kernel: str
    target: int
    registers: int
    spilled: int


def resources(target: int) -> Iterator[Resources]:
    """Compile each kernel for views of SIZE pixels in bfloat16, and read what the assembler reports."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set, so Triton compiles nothing; unset it")
    from data import augment_triton

    for kernel in (
        augment_triton._crop,
        augment_triton._color,
        augment_triton._blur_columns,
        augment_triton._blur_rows,
    ):
        tiles = triton.next_power_of_2(triton.cdiv(SIZE * SIZE, augment_triton.BLOCK))
        constants = {"SIZE": SIZE, "BLOCK": augment_triton.BLOCK, "TILES": tiles}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in constants else argument_type(name) for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants, pointers_aligned(kernel.arg_names))
        compiled = triton.compile(
            source, target=GPUTarget("cuda", target, 32), options={"num_warps": augment_triton.WARPS}
        )
        assembler = get_ptxas(target).path
        yield Resources(kernel.__name__, target, *assemble(assembler, compiled.asm["ptx"]))


def argument_type(name: str) -> str:
    """The type of an argument of a kernel, in Triton's words."""
    if name in ("rows", "work", "gray_sums", "columns"):
        return "*fp32"
    return "*bf16" if name == "out" else "fp32" if name.startswith(("gain", "shift")) else "i32"


def pointers_aligned(names: list[str]) -> dict[tuple[int], Any]:
    """The attributes of the arguments that torch's memory has: it begins at multiples of 16 bytes."""
    return {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if argument_type(name).startswith("*")}


def assemble(assembler: str, ptx: str) -> tuple[int, int]:
    """(registers, bytes spilled) as the assembler reports them."""
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture, "no target in the PTX"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [
            assembler,
            "-v",
            f"--gpu-name={architecture[1]}",
            str(file),
            "-o",
            str(Path(folder) / "kernel.cubin"),
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spills = re.search(r"Used (\d+) registers", report), re.findall(r"(\d+) bytes spill", report)
    assert registers is not None, f"the assembler reports something else: {report}"
    assert spills, f"the assembler reports something else: {report}"
    return int(registers[1]), sum(map(int, spills))


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python3 -m bench.triton_resources", description="registers of the Triton kernels")
    parser.add_argument("targets", type=int, nargs="*", metavar="TARGET", help="compute capability, such as 90")
    print("kernel          target  registers  spilled bytes")
    for target in parser.parse_args(argv).targets or TARGETS:
        for kernel, _, registers, spilled in resources(target):
            print(f"{kernel:<16}sm_{target:<5}{registers:>9}{spilled:>15}")


if __name__ == "__main__":
    run_cli(main)
