"""The filters, run call by call through an interpreter of BPF."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.runtime import seccomp
from domains.runtime.policy import NEWEST, filter_for
from domains.runtime.seccomp import ALLOW, KILL, all_of, assemble, one_of

X86_64, I386, X32 = 0xC000_003E, 0x4000_0003, 0x4000_0000
EPERM, ENOSYS = seccomp.errno(errno.EPERM), seccomp.errno(errno.ENOSYS)
NOBODY_KNOWS = 0xDEAD


def verdict(program: seccomp.Filter, number: int, *arguments: int, arch: int = X86_64) -> int:
    """Run a program over `struct seccomp_data`."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, constant = struct.unpack_from("<HBBI", program.code, 8 * place)
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x15:
                place += if_true if accumulator == constant else if_false
            case 0x35:
                place += if_true if accumulator >= constant else if_false
            case 0x45:
                place += if_true if accumulator & constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@given(st.dictionaries(st.integers(0, 460), st.sampled_from([ALLOW, EPERM, ENOSYS, KILL])), st.integers(0, 0x3FFF_FFFF))
def test_a_program_gives_each_number_its_verdict(verdicts, number):
    program = assemble(verdicts, default=NOBODY_KNOWS, newest=460)
    for each in {*verdicts, number}:
        assert verdict(program, each) == (verdicts.get(each, NOBODY_KNOWS) if each <= 460 else ENOSYS)


@given(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=40), st.integers(0, 2**64 - 1))
def test_one_of_looks_at_the_low_half_of_the_argument(values, argument):
    program = assemble({5: one_of(1, tuple(values), ALLOW, EPERM)}, default=KILL, newest=9)
    assert verdict(program, 5, 0, argument) == (ALLOW if argument & 0xFFFF_FFFF in values else EPERM)


@given(st.sampled_from([0, 1 << 16]), st.integers(0, 2**32 - 1))
def test_all_of_wants_one_bit_and_forbids_others(required, argument):
    program = assemble({5: all_of(0, required, 0x7E02_0080, ALLOW, EPERM)}, default=KILL, newest=9)
    allowed = not argument & 0x7E02_0080 and (not required or argument & required)
    assert verdict(program, 5, argument) == (ALLOW if allowed else EPERM)


@pytest.mark.parametrize("kind", ["driver", "storage", "dom0", "guest", "native"])
def test_the_calls_of_a_foreign_abi_kill(kind):
    program = filter_for(kind)
    assert verdict(program, 0, arch=I386) == KILL
    assert verdict(program, X32 | 0) == KILL
    assert verdict(program, 0xFFFF_FFFF) == KILL


@pytest.mark.parametrize("kind", ["driver", "storage", "guest", "native"])
def test_a_call_that_nobody_has_looked_at_does_not_exist(kind):
    assert verdict(filter_for(kind), NEWEST + 1) == ENOSYS


@pytest.mark.parametrize("kind", ["driver", "native"])
def test_a_driver_or_program_may_start_threads_and_not_processes(kind):
    program = filter_for(kind)
    pthread, fork, vfork = 0x3D_0F00, 0x0120_0011, 0x4111
    assert [verdict(program, 56, flags) for flags in (pthread, fork, vfork)] == [ALLOW, EPERM, EPERM]
    assert verdict(program, 56, pthread | 0x0002_0000) == EPERM, "a thread in a new mount namespace"


def test_a_storage_driver_alone_may_run_a_program_and_gets_no_more_for_it():
    driver, storage = filter_for("driver"), filter_for("storage")
    execve, socket, clone, prctl = 59, 41, 56, 157
    assert (verdict(driver, execve), verdict(storage, execve)) == (EPERM, ALLOW)
    af_unix, af_inet, af_netlink = 1, 2, 16
    assert [verdict(storage, socket, family) for family in (af_unix, af_inet, af_netlink)] == [ALLOW, EPERM, EPERM]
    assert [verdict(storage, clone, flags) for flags in (0x0120_0011, 0x4111, 0x1000_0011)] == [ALLOW, ALLOW, EPERM]
    pdeathsig, dumpable = 1, 4
    assert [verdict(storage, prctl, option) for option in (pdeathsig, dumpable)] == [ALLOW, EPERM]
    differ = {number for number in range(NEWEST + 1) if verdict(driver, number) != verdict(storage, number)}
    assert differ == {56, 57, 58, 59, 158, 61, 247, 42, 49, 50, 289}


def test_a_guest_may_start_processes_and_not_namespaces():
    program = filter_for("guest")
    assert verdict(program, 56, 0x0120_0011) == ALLOW
    for flag in (0x80, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000):
        assert verdict(program, 56, 0x11 | flag) == EPERM


@pytest.mark.parametrize(("request_", "expected"), [(0x5421, ALLOW), (0x5412, EPERM), (0x8912, EPERM)])
def test_a_driver_makes_harmless_ioctls_alone(request_, expected):
    assert verdict(filter_for("driver"), 16, 0, request_) == expected


def test_a_filter_that_bpf_cannot_jump_across_is_refused():
    with pytest.raises(ValueError, match="too many"):
        assemble({number: one_of(0, (1, 2, 3), ALLOW, EPERM) for number in range(400)}, default=KILL, newest=400)
