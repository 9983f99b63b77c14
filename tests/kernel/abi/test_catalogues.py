"""The written catalogues: what the code says, the catalogue has, and the other way round."""

import ast
from collections import defaultdict
from pathlib import Path

from kernel.abi.catalogue import DOCUMENT, catalogue
from kernel.abi.log_events import LOG_EVENTS

ROOT = Path(__file__).parents[3]

METHODS = {"debug", "info", "warning", "error", "critical", "event"}
SPREADS = {"who": {"name", "peer"}, "_name": {"name"}}
"""Functions whose result is spread into an event, and the fields that it has."""


def logged_events() -> dict[str, set[str]]:
    """Every event that the source logs, with all fields that it is ever given."""
    events: dict[str, set[str]] = defaultdict(set)
    for folder in ("kernel", "domains", "drivers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and (name := _event_of(node)):
                    events[name] |= _fields_of(node)
    return events


def _event_of(call: ast.Call) -> str | None:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in METHODS or not call.args:
        return None
    first = call.args[0]
    return (
        first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) and "." in first.value else None
    )


def _fields_of(call: ast.Call) -> set[str]:
    fields: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg:
            fields.add(keyword.arg)
        elif isinstance(keyword.value, ast.Call):
            function = keyword.value.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            fields |= SPREADS.get(name, set())
    return fields


def test_every_event_that_is_logged_is_in_the_catalogue_with_its_fields():
    unknown = {
        name: fields - set(LOG_EVENTS[name].fields.split()) if name in LOG_EVENTS else "no such event"
        for name, fields in logged_events().items()
    }
    assert {name: what for name, what in unknown.items() if what} == {}


def test_every_event_of_the_catalogue_is_logged_somewhere():
    made_by_the_log_itself = {"log.dropped"}
    assert set(LOG_EVENTS) - set(logged_events()) - made_by_the_log_itself == set()


def test_events_are_named_noun_dot_past_verb_and_in_order():
    assert list(LOG_EVENTS) == sorted(LOG_EVENTS)
    assert all(name.replace(".", "").replace("_", "").isalpha() and name.count(".") == 1 for name in LOG_EVENTS)


def test_the_written_catalogue_is_what_the_docstrings_say():
    assert DOCUMENT.read_text() == catalogue(), "run: python -m kernel.abi.catalogue"
