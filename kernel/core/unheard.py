"""What a frontend that stands still has yet to hear of its backends, without those that came and went meanwhile.

However often a driver dies while a guest stands still, what waits for the guest is no more than what is, and the end of
what was.
"""

from kernel.abi.ids import VbdHandle
from kernel.abi.upcalls import BackendActive, BackendOffered, BackendWithdrawn

__all__ = ["News", "Unheard"]

News = BackendOffered | BackendActive | BackendWithdrawn


class Unheard:
    """News of one incarnation of a guest: added in their order, taken in their order."""

    def __init__(self) -> None:
        self._news: list[News] = []
        self._distrusted: set[VbdHandle] = set()

    def add(self, news: News) -> None:
        """One more. A backend that goes before the frontend has heard of it was never there."""
        match news:
            case BackendWithdrawn(handle=handle, backend=backend):
                of_it = [old for old in self._news if (old.handle, old.backend) == (handle, backend)]
                if not any(isinstance(old, BackendOffered) for old in of_it):
                    self._news.append(news)
                    return
                self._news = [old for old in self._news if old not in of_it]
                if any(isinstance(old, BackendActive) and not old.take_published for old in of_it):
                    self._distrusted.add(handle)
            case BackendActive(handle=handle, backend=backend) if handle in self._distrusted:
                self._news.append(BackendActive(handle, backend, take_published=False))
            case _:
                self._news.append(news)

    def take(self) -> list[News]:
        """All of it, once: it goes on."""
        news, self._news = self._news, []
        self._distrusted.clear()
        return news

    def __len__(self) -> int:
        return len(self._news)
