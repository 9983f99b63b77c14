"""Numbers in requests, as C's atoi reads them: what is no number is 0."""

import re

__all__ = ["domid_of", "number_of"]

NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]{1,18})")


def number_of(text: bytes) -> int:
    found = NUMBER.match(text)
    number = int(found[1]) if found else 0
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def domid_of(text: bytes) -> int:
    return number_of(text) % (1 << 32)
