"""Which buffers of a split virtqueue the device holds, in memory that outlives the process that serves it.

Buffers come back in any order, so that `used.idx` alone does not tell which are still held (QEMU,
`docs/interop/vhost-user.rst`, "Inflight I/O tracking"). A process may be killed between any two of its stores; these
keep their order on x86-64. So:

    take       mark the head, before a later one is marked or any is given back
    give back  `last` := head; used element; used.idx + 1; clear the mark; `copy` := used.idx

Whoever finds `copy` behind the guest's used.idx knows that `last` was given back. All that is marked then is held; what
was given back and what is held is all that was taken, and taking is in order: the next buffer is at used.idx + marks.
"""

__all__ = ["COPY", "IN_FLIGHT_BYTES", "LAST", "InFlight"]

_HEADS = 256
LAST, COPY = _HEADS, _HEADS + 1
IN_FLIGHT_BYTES = 4096


class InFlight:
    """The table of one queue. `marks[head]` is 0, or a number that counts up in the order of taking; `order` is the
    last one given. Two words more are `marks[LAST]` and `marks[COPY]`."""

    __slots__ = ("marks", "order")

    def __init__(self, memory: memoryview | bytearray | None = None) -> None:
        """Without memory it outlives nobody."""
        self.marks = memoryview(bytearray(IN_FLIGHT_BYTES) if memory is None else memory).cast("Q")
        self.order = max(self.marks[:_HEADS])

    def mark(self, head: int) -> None:
        """The buffer is taken."""
        self.order += 1
        self.marks[head] = self.order

    def begin(self, used: int) -> None:
        """A queue is set up anew: nothing is held."""
        for head in range(_HEADS):
            self.marks[head] = 0
        self.marks[COPY] = used

    def recover(self, used: int) -> list[int] | None:
        """The heads that are held, oldest first, of a queue whose used.idx is `used`; None for a used.idx that none of
        us can have left."""
        marks = self.marks
        if used != marks[COPY]:
            if used != (marks[COPY] + 1) & 0xFFFF:
                return None
            marks[marks[LAST]] = 0
            marks[COPY] = used
        return [head for _, head in sorted((mark, head) for head, mark in enumerate(marks[:_HEADS]) if mark)]
