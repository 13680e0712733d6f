"""Every method on 1, 2 and 3 processes: loss, gradient and the state after two epochs are those of one process."""

import pytest

from methods import METHODS
from tests.helpers.method_cases import SMALL_VIEWS, every_case, is_local
from tests.prove import TOLERANCE, differences

FAST = [(case, 2) for case in every_case()] + [(name, 3) for name in METHODS]
SLOW = [pytest.param(case, 3, marks=pytest.mark.slow) for case in every_case() if case not in METHODS]


@pytest.mark.parametrize(("case", "world"), [*FAST, *SLOW])
def test_method_computes_the_same_on_any_number_of_processes(case, world, ranks):
    for part, found in differences(case, ranks(world), world).items():
        assert found < TOLERANCE, f"{part} differs"


@pytest.mark.parametrize("case", [case for case in every_case() if SMALL_VIEWS not in case])
def test_reduction_without_gradient_is_detected(case, ranks):
    """Where a gradient passes from one process to another; elsewhere there is nothing to break."""
    found = differences(case, ranks(2), 2, break_gradient=True)["gradient"]
    assert found < TOLERANCE if is_local(case) else found > 1e-3
