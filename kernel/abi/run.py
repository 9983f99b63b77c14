"""Where a run keeps its things: what the hypervisor writes and its clients look for.

RUNS/latest → RUN       the last run that was started
RUNS/RUN/admin.sock     administration, while the hypervisor lives
RUNS/RUN/xenstored/socket   xenstore, for its existing clients, while the hypervisor lives
RUNS/RUN/run.toml       what ran, when, on what
RUNS/RUN/log/           NAME.GENERATION.jsonl, a file for each incarnation of each domain
RUNS/RUN/console/       NAME.log, a file for each guest
"""

import os
import time
from pathlib import Path

__all__ = ["ADMIN_SOCKET", "LATEST", "STORE_SOCKET", "new_run", "runs_root"]

ADMIN_SOCKET = "admin.sock"
STORE_SOCKET = "xenstored/socket"
"""As an existing client of xenstore knows it below its folder (`XENSTORED_RUNDIR`)."""
LATEST = "latest"


def runs_root() -> Path:
    """The folder of all runs: `$TRIOVISOR_RUNS`, or `runs` in the working folder."""
    return Path(os.environ.get("TRIOVISOR_RUNS") or "runs").absolute()


def new_run() -> Path:
    """The path of a run that does not exist yet, named by time and chance."""
    return runs_root() / (time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex())
