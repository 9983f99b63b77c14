"""A program that can be run is loaded from its descriptor; each that cannot is one line with its place and its mend."""

import os
import subprocess
import sys

import pytest

from domains.native.program import MAX_PROGRAM_BYTES, BadProgram, describe, load

MAIN = "async def main(domain):\n    return domain\n"


def load_text(tmp_path, text: str | bytes):
    path = tmp_path / "p.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        return load(descriptor, path.name)
    finally:
        os.close(descriptor)


async def test_main_is_loaded_from_the_descriptor_alone(tmp_path):
    assert await load_text(tmp_path, MAIN)(7) == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("async def main(domain:\n", "p.py:1: '(' was never closed: mend it"),
        ("x = 1\n  y = 2\n", "p.py:2: unexpected indent: mend it"),
        ("x = '\udcff'".encode("utf-8", "surrogateescape"), "p.py:1: "),
        ("x = 1\0", "source code string cannot contain null bytes"),
        ("", "p.py: there is no main: add async def main(domain)"),
        ("main = 3", "p.py: main is no coroutine function: make it async def main(domain)"),
        ("def main(domain): pass", "p.py: main is no coroutine function: make it async def main(domain)"),
        ("async def main(): pass", "p.py: main takes other arguments"),
        ("async def main(a, b): pass", "make it async def main(domain)"),
        ("\nimport nothing_of_that_name\n", "p.py:2: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", "p.py:2: ValueError: a b: it ended before there was a main"),
        ("import sys\nsys.exit(3)\n", "p.py:2: exit status 3: it ended before there was a main"),
        (b"#" * (MAX_PROGRAM_BYTES + 1), f"p.py: more than {MAX_PROGRAM_BYTES} bytes"),
    ],
)
def test_a_program_that_cannot_be_run_is_one_line(tmp_path, text, line):
    with pytest.raises(BadProgram) as caught:
        load_text(tmp_path, text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("p.py:")


async def test_the_place_of_an_error_is_the_innermost_in_the_program_itself(tmp_path):
    main = load_text(tmp_path, "import json\nasync def main(domain):\n    f()\ndef f():\n    json.loads('{')\n")
    with pytest.raises(ValueError, match="Expecting") as caught:
        await main(None)
    assert describe(caught.value, "p.py").startswith("p.py:5: JSONDecodeError: Expecting property name")
    group = BaseExceptionGroup("both", [ExceptionGroup("one", [caught.value]), KeyboardInterrupt()])
    assert describe(group, "p.py") == describe(caught.value, "p.py")


def test_the_public_package_has_what_it_names_and_documents_it():
    """In a fresh interpreter behind the wall, as a program has it."""
    script = """
from domains.runtime.wall import put_up
put_up("domains.native.main")
import domains.native as native
for name in native.__all__:
    assert getattr(native, name).__doc__ or name == "ANY_GENERATION" or name == "SECTOR_BYTES", name
try:
    import examples.native.verify
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "may not import examples" in done.stdout
