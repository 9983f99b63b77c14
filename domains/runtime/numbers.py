"""Small numbers that a domain gives to its own ports and grants."""

__all__ = ["Numbers"]

HIGHEST = 0xFFFF


class Numbers:
    """Hands out numbers from `first` to 65,535, each in one use at a time, the longest unused first."""

    def __init__(self, first: int = 1) -> None:
        self._first = self._next = first
        self._used: set[int] = set()

    def take(self) -> int:
        """A number that is not in use. A domain runs out of ports and grants long before it runs out of numbers."""
        while self._next in self._used:
            self._advance()
        taken = self._next
        self._used.add(taken)
        self._advance()
        return taken

    def give_back(self, number: int) -> None:
        """The number's use is over."""
        self._used.discard(number)

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next < HIGHEST else self._first
