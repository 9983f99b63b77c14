"""Threads where address space is short."""

import ctypes

__all__ = ["share_one_arena"]

_M_ARENA_MAX = -8
"""`malloc.h`: how many arenas the C library may make. Each takes 64 MiB of address space, one for each new thread up to
eight times the CPUs, and is of no use to threads that hold one interpreter lock."""


def share_one_arena() -> None:
    """Have all threads of this process allocate from one arena. Before there is a second thread."""
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
