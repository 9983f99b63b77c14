"""A driver runs ahead of its order, for nobody, and nothing is left of that."""

import gc
import os
import threading

import msgspec

from domains.runtime.entry import rehearse
from kernel.abi.roles import DriverStart


def test_a_rehearsal_leaves_no_descriptor_and_no_thread():
    config = msgspec.msgpack.encode(DriverStart(False, {}))
    rehearse("drivers.blkback.main", config)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        rehearse("drivers.blkback.main", config)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_role_that_names_nothing_to_rehearse_is_not_run():
    rehearse("domains.dom0.main", b"no config of a Dom0")
