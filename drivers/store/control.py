"""`xenstore-control`: what an administrator may ask and set (`docs/misc/xenstore.txt`, CONTROL)."""

from drivers.store.errors import EINVAL, ENOENT, Refused
from drivers.store.numbers import domid_of, number_of
from drivers.store.state import State

__all__ = ["answer"]

OK = b"OK\0"

QUOTAS = {
    b"nodes": ("nodes", "Nodes per domain"),
    b"watches": ("watches", "Watches per domain"),
    b"transactions": ("transactions", "Transactions per domain"),
    b"outstanding": ("outstanding", "Outstanding requests per connection"),
    b"transaction-nodes": ("transaction_nodes", "Nodes looked at per transaction"),
    b"node-size": ("node_size", "Bytes per node"),
    b"path-max": ("path", "Bytes of a path"),
    b"permissions": ("permissions", "Permissions per node"),
}

COMMANDS = {
    b"check": "",
    b"log": "on|off",
    b"print": "<string>",
    b"quota": "[set <name> <val>|<domid>]",
    b"help": "",
}


def answer(state: State, body: bytes) -> tuple[bytes, bool]:
    """The reply, and whether something has changed. Raises Refused."""
    words = body.split(b"\0")[:-1]
    match words:
        case [b"help"]:
            return "".join(f"{name.decode()}\t{words}\n" for name, words in COMMANDS.items()).encode() + b"\0", False
        case [b"check"] | [b"print", _] | [b"log", b"on" | b"off"]:
            return OK, False
        case [b"quota"]:
            return _show(state), False
        case [b"quota", b"set", name, value]:
            return _set(state, name, number_of(value)), True
        case [b"quota", domid]:
            return _usage(state, domid_of(domid)), False
        case _:
            raise Refused(EINVAL)


def _show(state: State) -> bytes:
    lines = [f"{name.decode():<17}: {getattr(state.quotas, field):8} {what}" for name, (field, what) in QUOTAS.items()]
    return "\n".join(["Quota settings:", *lines, "\0"]).encode()


def _set(state: State, name: bytes, value: int) -> bytes:
    if name not in QUOTAS or value < 1:
        raise Refused(EINVAL)
    setattr(state.quotas, QUOTAS[name][0], value)
    return OK


def _usage(state: State, domid: int) -> bytes:
    """What one domain has."""
    if domid not in state.domains:
        raise Refused(ENOENT)
    connections = [each for each in state.connections.values() if each.domid == domid]
    counts = {
        "nodes": state.tree.owned.get(domid, 0),
        "watches": sum(len(each.watches) for each in connections),
        "transactions": sum(len(each.transactions) for each in connections),
        "outstanding": sum(len(each.unsettled) for each in connections),
    }
    lines = [f"{name:<16}: {count:8}" for name, count in counts.items()]
    return "\n".join([f"Domain {domid}:", *lines, "\0"]).encode()
