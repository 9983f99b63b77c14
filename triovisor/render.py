"""What `tv` prints, as text. Pure: values in, lines out."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kernel.abi.guest_config import DomainInfo, DomainState, DriverInfo, VbdInfo

__all__ = [
    "Table", "block_table", "columns", "domain_list", "domain_list_with_ends", "domain_pairs", "driver_table", "pairs",
    "state_slots", "uptimes", "vbd_table", "vcpu_list", "vcpus", "visible",
]  # fmt: skip


class Table(NamedTuple):
    """Rows under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


_LIST_HEAD = "Name                                        ID   Mem VCPUs\tState\tTime(s)"
"""Line for line what `xl list` prints (tools/xl/xl_list.c), so that what reads the one can read the other."""

_SLOTS = {
    DomainState.STARTING: "------",
    DomainState.RUNNING: "r-----",
    DomainState.STOPPING: "r-----",
    DomainState.HELD: "-b----",
    DomainState.PAUSED: "--p---",
    DomainState.SHUTDOWN: "---s--",
    DomainState.CRASHED: "----c-",
    DomainState.GIVEN_UP: "----c-",
    DomainState.DEAD: "-----d",
}


def state_slots(state: DomainState) -> str:
    """The six slots r b p s c d of `xl list`: running, blocked, paused, shut down, crashed, dying."""
    return _SLOTS[state]


def domain_list(domains: Iterable[DomainInfo]) -> str:
    lines = [_LIST_HEAD]
    for domain in domains:
        lines.append(
            f"{domain.name:<40} {domain.domid:5d} {domain.memory:5d} {domain.vcpus:5d}     "
            f"{state_slots(domain.state)}  {domain.cpu_time_s:8.1f}"
        )
    return "\n".join(lines)


def domain_list_with_ends(domains: Iterable[DomainInfo]) -> str:
    """The same, and after each line how its last incarnation ended."""
    domains = list(domains)
    head, *lines = domain_list(domains).splitlines()
    ends = [domain.last_end or "-" for domain in domains]
    return "\n".join([f"{head}  Last end", *(f"{line}  {end}" for line, end in zip(lines, ends, strict=True))])


def uptimes(domains: Iterable[DomainInfo]) -> str:
    """Line for line what `xl uptime` prints (tools/xl/xl_misc.c)."""
    lines = ["Name                                ID Uptime"]
    lines += [f"{domain.name:<32} {domain.domid:5d} {_duration(domain.uptime_s)}" for domain in domains]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    time = f"{rest // 3600:2d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} day{'s' * (days > 1)}, {time}" if days else time


class Vcpu(NamedTuple):
    """A virtual CPU: on which one of the host it runs, where that is known; on which it may."""

    name: str
    domid: int
    vcpu: int
    cpu: int | None
    state: str
    time_s: float
    affinity: str


def vcpus(domains: Iterable[DomainInfo], host_cpus: int) -> list[dict[str, Any]]:
    """Of each domain. One that may run on every CPU of the host has the affinity all."""
    return [
        Vcpu(
            domain.name,
            domain.domid,
            vcpu,
            domain.cpus[0] if len(domain.cpus) == 1 else None,
            _VCPU_STATES.get(domain.state, "---"),
            round(domain.cpu_time_s, 1),
            "all" if len(domain.cpus) >= host_cpus else ",".join(map(str, domain.cpus)) or "-",
        )._asdict()
        for domain in domains
        for vcpu in range(domain.vcpus)
    ]


_VCPU_STATES = {
    DomainState.STARTING: "r--",
    DomainState.RUNNING: "r--",
    DomainState.STOPPING: "r--",
    DomainState.HELD: "-b-",
    DomainState.PAUSED: "--p",
}


def vcpu_list(rows: Iterable[dict[str, Any]]) -> str:
    """With the columns of `xl vcpu-list` (tools/xl/xl_vcpu.c)."""
    lines = ["Name                                ID  VCPU   CPU State   Time(s) Affinity"]
    for row in rows:
        cpu = "-" if row["cpu"] is None else row["cpu"]
        lines.append(
            f"{row['name']:<32} {row['domid']:5d} {row['vcpu']:5d} {cpu:>5}   {row['state']} {row['time_s']:9.1f} "
            f"{row['affinity']}"
        )
    return "\n".join(lines)


def block_table(domains: Iterable[DomainInfo]) -> Table:
    """The disks of several domains: those of `vbd_table` with whose they are."""
    rows = [(domain.name, *row) for domain in domains for row in vbd_table(domain.vbds).rows]
    return Table(("Name", *vbd_table([]).head), rows)


def domain_pairs(domain: DomainInfo) -> str:
    """One domain, a line for each thing known but its vbds."""
    return pairs(
        {
            "name": domain.name,
            "domid": domain.domid,
            "kind": domain.kind,
            "state": domain.state.value,
            **({"paused_for": domain.paused_for} if domain.paused_for else {}),
            "generation": domain.generation,
            "pid": _or_dash(domain.pid),
            "memory_mib": domain.memory,
            "vcpus": domain.vcpus,
            "cpus": ",".join(map(str, domain.cpus)) or "-",
            "cpu_time_s": f"{domain.cpu_time_s:.2f}",
            "uptime_s": f"{domain.uptime_s:.1f}",
            "jail": domain.jail,
            "restarts": domain.restarts,
            **({"last_end": domain.last_end} if domain.last_end else {}),
        }
    )


def driver_table(drivers: Iterable[DriverInfo]) -> Table:
    head = ("Name", "ID", "State", "Gen", "PID", "Standby", "Jail", "Restarts", "Vbds", "Last death")
    rows = [
        (
            driver.name,
            driver.domid,
            driver.state.value,
            driver.generation,
            _or_dash(driver.pid),
            _or_dash(driver.standby_pid),
            driver.jail or "-",
            driver.restarts,
            len(driver.vbds),
            driver.last_death or "-",
        )
        for driver in drivers
    ]
    return Table(head, rows)


def pairs(values: dict[str, Any]) -> str:
    """`key : value` a line, as `xl info` prints them."""
    return "\n".join(f"{key:<22} : {_text(value)}" for key, value in values.items())


def vbd_table(vbds: Iterable[VbdInfo]) -> Table:
    """With the columns of `xl block-list` that mean something here."""
    head = ("Vdev", "BE", "handle", "state", "access", "sectors", "target")
    rows = [(vbd.vdev, vbd.backend, vbd.handle, vbd.state, vbd.access, vbd.sectors, vbd.target) for vbd in vbds]
    return Table(head, rows)


def visible(data: bytes) -> str:
    """What a guest wrote, so that it cannot steer a terminal: all but newline, tab and what is printed stands as ^X or
    as an escape. A return before a newline is left out."""
    text = data.replace(b"\r\n", b"\n").decode(errors="backslashreplace")
    return "".join(char if char.isprintable() or char in "\n\t" else _caret(char) for char in text)


def _caret(char: str) -> str:
    code = ord(char)
    return f"^{chr(code ^ 0x40)}" if code < 0x20 or code == 0x7F else char.encode("unicode_escape").decode()


def columns(table: Table) -> str:
    """A table as text, each column as wide as its widest cell; a number stands to the right."""
    rows = [table.head, *table.rows]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(_cell, row, widths)).rstrip() for row in rows)


def _cell(value: Any, width: int) -> str:
    return f"{value:>{width}}" if isinstance(value, int) else f"{value:<{width}}"


def _or_dash(value: int | None) -> int | str:
    return "-" if value is None else value


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
