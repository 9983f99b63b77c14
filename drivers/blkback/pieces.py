"""Which pieces of an image are known to be allocated, so that writing to them changes no more than their data.

The daemon keeps what it allocates in its memory until it flushes. So a write is answered after a flush, unless all its
pieces were written and flushed before: then the data alone counts, and that is in the file when the write is done.
"""

from collections.abc import Iterable

__all__ = ["Pieces"]

MOST = 1 << 18
"""That are remembered: 16 GiB of an image with pieces of 64 KiB. Whatever is forgotten costs a flush."""


class Pieces:
    """The pieces of one image, while one daemon serves it. Offsets and lengths in bytes."""

    def __init__(self, piece_bytes: int) -> None:
        self._piece_bytes = piece_bytes
        self._known: set[int] = set()

    def knows(self, offset: int, length: int) -> bool:
        """Whether all of them are known."""
        return self._known.issuperset(self._of(offset, length))

    def learn(self, writes: Iterable[tuple[int, int]]) -> None:
        """These were written, and flushed afterwards."""
        if len(self._known) > MOST:
            self._known.clear()
        for offset, length in writes:
            self._known.update(self._of(offset, length))

    def forget(self, offset: int, length: int) -> None:
        """These may be given back."""
        gone = self._of(offset, length)
        if len(gone) < len(self._known):
            self._known.difference_update(gone)
        else:
            self._known = {piece for piece in self._known if piece not in gone}

    def _of(self, offset: int, length: int) -> range:
        return range(offset // self._piece_bytes, (offset + length - 1) // self._piece_bytes + 1)
