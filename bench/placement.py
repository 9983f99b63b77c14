"""Where everything runs: the guest's system on one CPU, what serves it on another, ours and the peer's alike."""

import os

__all__ = ["SERVER_CPU", "SYSTEM_CPU"]

_CPUS = sorted(os.sched_getaffinity(0))
SYSTEM_CPU, SERVER_CPU = _CPUS[0], _CPUS[min(1, len(_CPUS) - 1)]
