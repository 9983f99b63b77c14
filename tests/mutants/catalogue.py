"""Mutants: deliberate breaks of the product's code, as data. The TOML files beside this one have them, by subject."""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

__all__ = ["ROOT", "Mutant", "TextGone", "load", "mutate"]

ROOT = Path(__file__).parents[2]


class Mutant(Struct, frozen=True, forbid_unknown_fields=True):
    """In `file`, `text` becomes `becomes`; it occurs exactly once. `breaks` says in one line what is wrong then.

    Each test of `red_by` (a pytest node id) must fail for it. `slow`: one of them starts a hypervisor, is red only
    after a deadline, or looks for its failing example for seconds.
    """

    name: Annotated[str, Meta(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]
    file: str
    text: str
    becomes: str
    breaks: Annotated[str, Meta(min_length=10, max_length=120)]
    red_by: Annotated[list[str], Meta(min_length=1)]
    slow: bool = False


class _Subject(Struct, frozen=True, forbid_unknown_fields=True):
    mutant: list[Mutant]


class TextGone(Exception):
    """The code has changed, and the mutant's text is not there exactly once. `str()` names both."""


def load() -> list[Mutant]:
    """All mutants, in the order of the files."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return [mutant for file in files for mutant in msgspec.convert(tomllib.loads(file.read_text()), _Subject).mutant]


def mutate(mutant: Mutant, source: str) -> str:
    """The mutated source. Raises TextGone, and SyntaxError for a replacement that is no Python."""
    count = source.count(mutant.text)
    if count != 1:
        raise TextGone(f"{mutant.name}: its text is {count} times in {mutant.file}, not once: mend the mutant")
    changed = source.replace(mutant.text, mutant.becomes)
    compile(changed, mutant.file, "exec")
    return changed
