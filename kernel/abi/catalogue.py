"""The ABI's document, from its own docstrings: `python -m kernel.abi.catalogue` writes docs/abi.md."""

import inspect
from pathlib import Path
from types import ModuleType

from msgspec import Struct
from msgspec.inspect import type_info

from kernel.abi import (
    admin,
    console_io,
    domctl,
    guest_io,
    hypercalls,
    keeping,
    log_events,
    spawn,
    status,
    store_io,
    upcalls,
)

__all__ = ["DOCUMENT", "catalogue"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "abi.md"

CHANNELS: tuple[tuple[str, ModuleType], ...] = (
    ("Hypercalls: domain → hypervisor", hypercalls),
    ("Hypercalls: Dom0 → hypervisor", domctl),
    ("Upcalls: hypervisor → domain", upcalls),
    ("Administration: tv ↔ Dom0", admin),
    ("Commands in a guest: Dom0 ↔ guest", guest_io),
    ("Consoles: Dom0 → console driver ↔ tv", console_io),
    ("xenstore: domain ↔ store", store_io),
    ("Logs: hypervisor, Dom0 ↔ log keeper", keeping),
    ("Zygotes: hypervisor ↔ zygote", spawn),
)


def catalogue() -> str:
    """All messages and status codes, as Markdown."""
    parts = ["# The ABI", "", "Made by `python -m kernel.abi.catalogue`; a test holds it to the code.", ""]
    parts += ["Every message is a msgpack array `[op, …fields]`; a packet is an array of messages.", ""]
    for title, module in CHANNELS:
        parts += [f"## {title}", "", inspect.getdoc(module) or "", ""]
        for message in _messages(module):
            parts += _entry(message)
    parts += ["## Status codes", "", "| Name | Number |", "| --- | --- |"]
    parts += [f"| {code.name} | {code.value} |" for code in status.Status]
    parts += ["", "## Log events", "", log_events.__doc__ or "", "| Event | Meaning | Fields |", "| --- | --- | --- |"]
    parts += [f"| `{name}` | {event.meaning} | {event.fields} |" for name, event in log_events.LOG_EVENTS.items()]
    return "\n".join(parts) + "\n"


def _messages(module: ModuleType) -> list[type[Struct]]:
    """The tagged structs that a module defines, by number."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Struct) and value.__module__ == module.__name__
    ]
    tagged = [message for message in found if isinstance(message.__struct_config__.tag, int)]
    return sorted(tagged, key=_number)


def _number(message: type[Struct]) -> int:
    tag = message.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def _entry(message: type[Struct]) -> list[str]:
    fields = ", ".join(field.name for field in type_info(message).fields)  # type: ignore[attr-defined]
    text = inspect.getdoc(message) or ""
    number = f"0x{_number(message):02x}"
    return [
        f"### {number} {message.__name__}",
        "",
        f"`[{', '.join(filter(None, (number, fields)))}]`",
        "",
        "```text",
        text,
        "```",
        "",
    ]


if __name__ == "__main__":
    DOCUMENT.write_text(catalogue())
