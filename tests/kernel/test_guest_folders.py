"""Folders for guests of the reduced jail: a hypervisor's own, gone with it or with the next one."""

import fcntl
import os
import subprocess
import sys

import pytest

from kernel.guest_folders import GuestFolders

MAKE_AND_WAIT = """
import sys
from kernel.guest_folders import GuestFolders
folders = GuestFolders()
print(folders.make(), flush=True)
sys.stdin.read()
"""


def test_each_guest_has_one_that_is_removed_with_all_in_it():
    folders = GuestFolders()
    one, two = folders.make(), folders.make()
    assert one != two
    (one / "uml").mkdir()
    folders.remove(one)
    assert not one.exists()
    assert two.stat().st_mode & 0o777 == 0o700
    folders.close()
    assert not two.parent.exists()


def test_without_a_guest_there_is_nothing():
    folders = GuestFolders()
    folders.close()


def test_those_of_a_killed_hypervisor_go_with_the_next_one_and_those_of_a_living_one_stay():
    command = [sys.executable, "-c", MAKE_AND_WAIT]
    killed, living = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    with killed, living:
        assert killed.stdout is not None
        assert living.stdout is not None
        abandoned, held = killed.stdout.readline().strip(), living.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert os.path.isdir(abandoned)
        folders = GuestFolders()
        folders.make()
        assert not os.path.exists(abandoned)
        assert os.path.isdir(held)
        folders.close()
        living.kill()
    os.rmdir(held)
    os.rmdir(os.path.dirname(held))


def test_a_root_is_locked_while_its_hypervisor_lives():
    folders = GuestFolders()
    root = os.open(folders.make().parent, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(root, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(root)
    folders.close()
