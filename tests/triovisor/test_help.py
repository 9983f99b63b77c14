"""What `tv` says of itself: each verb has `--json`, and an example that can be typed as it stands."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from triovisor.cli import app

ROOT: Any = typer.main.get_command(app)
EXAMPLE = "For example: "
WITHOUT_JSON = {"console", "login"}
"""They are a conversation, and no answer."""
NO_VERBS_OF_TV = re.compile(r"^(gdb|echo|tail)\b")


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        elif not command.hidden:
            yield (*path, name)


VERBS = list(verbs(ROOT))


def test_the_start_of_tv_waits_for_nothing_that_only_some_verbs_need():
    heavy = {"trio", "rich", "tomllib", "concurrent.futures", "readline", "triovisor.overlays"}
    script = "import sys, triovisor.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "triovisor.client" in loaded
    assert not heavy & set(loaded)


def command_of(words):
    command: Any = ROOT
    for word in words:
        command = command.commands[word]
    return command


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_each_verb_can_answer_a_script(verb):
    options = [option for parameter in command_of(verb).params for option in parameter.opts]
    assert ("--json" in options) is (verb[0] not in WITHOUT_JSON)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_each_verb_shows_an_example_that_it_takes(verb):
    epilog = command_of(verb).epilog or ""
    assert epilog.startswith(EXAMPLE + f"tv {' '.join(verb)}"), "no example of the verb itself"
    for line in re.split(r"; (?=tv |gdb |echo )", epilog.removeprefix(EXAMPLE)):
        words = shlex.split(line.partition(" | ")[0])
        if NO_VERBS_OF_TV.match(line):
            continue
        assert words.pop(0) == "tv"
        parse(words)


def parse(words):
    """As far as the last verb; raises where the words are none of its."""
    context, command = typer.Context(ROOT), ROOT
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("example", list(words), parent=context, resilient_parsing=False)


@pytest.mark.parametrize("words", [["list", "--bogus"], ["domname", "web"], ["rename", "web"]], ids=" ".join)
def test_an_example_that_cannot_be_typed_is_noticed(words):
    with pytest.raises(Exception, match=r"bogus|valid int|Missing"):
        parse(words)
