"""A stand-in for the hypervisor: starts a real zygote and has it spawn real children."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.ids import DomId, Generation, Peer, RequestId
from kernel.abi.spawn import CONTROL, Identity, Jail, Spawned, SpawnFailed, SpawnRequest, ZygoteReply, ZygoteRequest

ROOT = Path(__file__).parents[3]
ROLE = "tests.domains.runtime.roles"
NOBODY = 65534
PATIENCE_S = 30.0

_codec = Codec(ZygoteReply)


def wait_readable(descriptor: int, what: str) -> None:
    """Wait for it, or fail."""
    assert select.select([descriptor], [], [], PATIENCE_S)[0], f"no {what} within {PATIENCE_S} s"


def kill_and_reap(pidfd: int) -> None:
    """End a child of ours and leave no zombie."""
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


@dataclass
class SpawnedChild:
    """A jailed child, and the hypervisor's end of its control channel."""

    spawned: Spawned
    pidfd: int
    control: socket.socket

    def report(self) -> dict:
        """What the probe said."""
        wait_readable(self.control.fileno(), "report of the probe")
        report: dict = json.loads(self.control.recv(65536))
        return report

    def status(self) -> dict[str, str]:
        """`/proc/PID/status` as the host sees it."""
        rows = Path(f"/proc/{self.spawned.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (row.partition(":") for row in rows)}

    def end(self) -> None:
        """Kill and reap."""
        kill_and_reap(self.pidfd)
        self.control.close()


class Zygote:
    """The hypervisor's end of one zygote's control socket."""

    def __init__(self, control: socket.socket, pidfd: int) -> None:
        self.control = control
        self.pidfd = pidfd
        self.children: list[SpawnedChild] = []
        self.own_uids = os.geteuid() == 0

    def ask(
        self, message: SpawnRequest | ZygoteRequest, descriptors: Sequence[int]
    ) -> tuple[Spawned | SpawnFailed, int]:
        """One request and its answer: the message and the pidfd that rode along, or -1."""
        packet.send(self.control, encode([message]), descriptors)
        wait_readable(self.control.fileno(), "answer of the zygote")
        data, received = packet.receive(self.control)
        (answer,) = _codec.decode(data)
        return answer, received[0] if received else -1

    def spawn(self, probe: str, jail: Jail, domid: int = 7, **more: int) -> SpawnedChild:
        """Have the role run a probe in a jail. `more` are further descriptors by name; they stay the caller's."""
        ours, theirs = packet.pair()
        with theirs:
            names = (CONTROL, "stderr", *more)
            request = spawn_request(probe, jail, names, domid)
            answer, pidfd = self.ask(request, (theirs.fileno(), 2, *more.values()))
        assert isinstance(answer, Spawned), answer
        self.children.append(SpawnedChild(answer, pidfd, ours))
        return self.children[-1]

    def probe(self, probe: str, jail: Jail, **more: int) -> dict:
        """Run a probe and return its report."""
        return self.spawn(probe, jail, **more).report()

    def signal_from_inside(self, pids: Iterable[int]) -> dict[str, str]:
        """What comes of a driver's signals to these processes of the host, by pid."""
        with tempfile.TemporaryFile() as file:
            file.write(" ".join(map(str, pids)).encode())
            file.flush()
            report = self.probe("signals_outside", Jail("driver"), pids=file.fileno())
        return {pid: result for pid, result in report.items() if pid != "jail"}

    def close(self) -> None:
        """End the children and the zygote, with the spare that it may have."""
        for child in self.children:
            child.end()
        self.control.close()
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)


def spawn_request(probe: str, jail: Jail, names: Iterable[str], domid: int = 7) -> SpawnRequest:
    """A request for the role of these tests."""
    identity = Identity("d", Peer(DomId(domid), Generation(1)))
    return SpawnRequest(RequestId(1), ROLE, identity, jail, probe.encode(), tuple(names))


def start_base(prefix: Sequence[str] = (), *more: str) -> Zygote:
    """Execute a base zygote whose children run the probes."""
    ours, theirs = packet.pair()
    command = [*prefix, sys.executable, "-m", "domains.runtime.zygote", "--control", str(theirs.fileno())]
    command += ["--tree", str(ROOT / "tests"), "--entry", ROLE, *more]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, start_new_session=True)
    zygote = Zygote(ours, os.pidfd_open(process.pid))
    process.returncode = 0  # reaped by its pidfd
    return zygote


def fork_role(base: Zygote, role: str = ROLE) -> Zygote:
    """Have the base zygote fork one for a role."""
    ours, theirs = packet.pair()
    with theirs:
        answer, pidfd = base.ask(ZygoteRequest(RequestId(2), role), [theirs.fileno()])
    assert isinstance(answer, Spawned), answer
    return Zygote(ours, pidfd)


def as_nobody() -> list[str]:
    """A command's prefix: run it as uid 65534, in a mount namespace in which that user can reach our interpreter."""
    trees = {sys.prefix, sys.base_prefix, str(ROOT)}
    closed = {ancestor for tree in trees for ancestor in Path(tree).parents if ancestor.stat().st_mode & 0o5 != 0o5}
    stage = tempfile.mkdtemp(prefix="nobody-")
    commands = []
    for top in sorted(closed, key=lambda path: len(path.parts))[:1]:
        inside = [tree for tree in sorted(trees) if top in Path(tree).parents]
        for number, tree in enumerate(inside):
            commands.append(f"mkdir {stage}/{number} && mount --bind {tree} {stage}/{number}")
        commands.append(f"mount -t tmpfs -o mode=755 tmpfs {top}")
        commands += [f"mkdir -p {tree} && mount --move {stage}/{number} {tree}" for number, tree in enumerate(inside)]
    commands.append(f"find {stage} -depth -type d -empty -delete")
    script = " && ".join([*commands, f'exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh"]
