"""The counts of kernel launches that need no GPU."""

import subprocess
import sys

import pytest
import torch
import torch._dynamo  # noqa: F401  # here, since it leaves a variable in the environment and a dispatch mode would import it

from tests.helpers.commands import ROOT
from tests.helpers.generated_for_cuda import CountLaunches, LaunchedCode

CODE = '''
triton_poi_fused_add_0 = async_compile.triton("triton_poi_fused_add_0", """
def triton_poi_fused_add_0(in_ptr0): tl.store(in_ptr0, tl.load(in_ptr0))
""")

class Runner:
    def call(self, args):
        buf0 = empty_strided_cuda((2, 3), (3, 1), torch.float32)
        triton_poi_fused_add_0.run(arg0, buf0, 6, stream=raw_stream0)
        extern_kernels.mm(buf0, arg1, out=buf1)
        assert_tensor_metadata(buf1, (2, 2), (2, 1), torch.float32, 'torch.ops.aten.mm.default')
        buf2 = torch.ops.aten.convolution_backward.default(buf1, arg2)
        triton_poi_fused_add_0.run(buf2, buf1, 6, stream=raw_stream0)
        return (buf1, reinterpret_tensor(buf2, (4,), (1,), 0))

def benchmark_compiled_module():
    return extern_kernels.mm(a, b)
'''
# A method on two convolutions, in a process of its own: torch keeps the properties of the GPU that it was told of.
COUNT = """
from tests.compiled_launches_table import launches
from tests.helpers.short_training import SmallConvolutions
found = launches("simclr", (SmallConvolutions(), 12), 8)
print(found.forward, found.backward, found.optimizer)
for code in (found.graphs.forward, found.graphs.backward):
    print(code.triton, code.external, code.bytes)
"""


def test_launched_code_counts_calls_in_the_body_alone():
    code = LaunchedCode(CODE, 0)
    assert (code.triton, code.external) == (2, 2)


def test_count_launches_leaves_out_views_and_memory_that_nobody_writes():
    x = torch.ones(2, 3)
    with CountLaunches() as launches:
        x.view(6)[1:].unsqueeze(0)
        torch.empty(3)
        x.detach()
        torch.promote_types(x.dtype, torch.float64)
        assert launches.count == 0
        (x + 1).add_(x)
        torch._foreach_mul_([x, x.clone()], 2)
    assert launches.count == 4


@pytest.mark.slow
def test_launches_of_a_small_network():
    pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
    words = [sys.executable, "-W", "ignore", "-c", COUNT]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    eager, forward, backward = ([int(number) for number in line.split()] for line in lines)
    # Two views: two convolutions and two linear layers of each. The similarities and the online probe are two products.
    assert forward[1] == 2 * (2 + 2) + 2
    # A gradient of a convolution is one call, that of a product two; the probe's input has none.
    assert backward[1] == 2 * (2 + 2 * 2) + 2 + 1
    assert 10 < forward[0] < eager[0]
    assert 10 < backward[0] < eager[1]
    assert 10 < eager[2] < 40
    weights = 8 * 3 * 9 + 12 * 8 * 9
    assert 2 * 8 * 3 * 32 * 32 * 4 + weights * 4 < forward[2] < 2e7
    assert backward[2] > weights * 4
