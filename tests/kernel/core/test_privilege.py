"""The privilege table."""

from typing import get_args

import pytest

from kernel.abi import hypercalls
from kernel.abi.status import Refused, Status
from kernel.core.domains import Kind
from kernel.core.privilege import ALLOWED, check


def test_every_hypercall_is_in_the_table():
    assert set(ALLOWED) == set(get_args(hypercalls.Hypercall))


@pytest.mark.parametrize("operation", [op for op in ALLOWED if op.__name__.startswith(("Domctl", "Sysctl"))])
@pytest.mark.parametrize("kind", [Kind.DRIVER, Kind.GUEST])
def test_control_of_other_domains_is_for_dom0_alone(kind, operation):
    check(Kind.DOM0, operation)
    with pytest.raises(Refused) as caught:
        check(kind, operation)
    assert caught.value.status is Status.EPERM
