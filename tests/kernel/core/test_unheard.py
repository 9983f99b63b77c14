"""What waits for a frontend that stands still is bounded by what there is, and leads where all of it would have led."""

from hypothesis import given
from hypothesis import strategies as st

from kernel.abi.ids import DomId, Generation, Peer, VbdHandle
from kernel.abi.upcalls import BackendActive, BackendOffered, BackendWithdrawn
from kernel.core.unheard import News, Unheard

HANDLES = [VbdHandle(1), VbdHandle(2)]


def peer(generation: int) -> Peer:
    return Peer(DomId(1), Generation(generation))


@st.composite
def histories(draw) -> tuple[list[News], list[News]]:
    """What a frontend heard before it was stopped, and what came to pass afterwards: incarnations that come, serve when
    their predecessor is gone, and go, as the hypervisor tells it of each vbd."""
    told: list[News] = []
    alive: list[int] = []
    active, newest = 0, 0
    stop = draw(st.integers(1, 6))
    at = 0
    for step in range(draw(st.integers(stop, 30))):
        if step == stop:
            at = len(told)
        if len(alive) < 2 and (not alive or draw(st.booleans())):
            newest += 1
            alive.append(newest)
            told += [BackendOffered(handle, peer(newest)) for handle in HANDLES]
        elif alive:
            gone = draw(st.sampled_from(alive))
            alive.remove(gone)
            told += [BackendWithdrawn(handle, peer(gone)) for handle in HANDLES]
            active = 0 if gone == active else active
        if not active and alive:
            active = alive[0]
            trusted = draw(st.booleans())
            told += [BackendActive(handle, peer(active), trusted) for handle in HANDLES]
    return told[:at], told[at:]


def end_of(news: list[News]) -> dict[VbdHandle, tuple[set[Peer], Peer | None]]:
    """Whom a frontend that heard all this has rings for, and whom it posts to."""
    ends: dict[VbdHandle, tuple[set[Peer], Peer | None]] = {handle: (set(), None) for handle in HANDLES}
    for word in news:
        rings, active = ends[word.handle]
        match word:
            case BackendOffered(backend=backend):
                assert backend not in rings
                rings.add(backend)
            case BackendActive(backend=backend):
                assert backend in rings, "it has a ring first"
                active = backend
            case BackendWithdrawn(backend=backend):
                rings.remove(backend)
        ends[word.handle] = rings, active
    return {handle: (rings, active if active in rings else None) for handle, (rings, active) in ends.items()}


@given(histories())
def test_it_leads_to_the_same_end_and_is_never_long(history):
    before, after = history
    unheard = Unheard()
    for news in after:
        unheard.add(news)
        assert len(unheard) <= 6 * len(HANDLES)
    kept = unheard.take()
    assert end_of([*before, *kept]) == end_of([*before, *after])
    assert unheard.take() == []


@given(histories())
def test_what_was_published_is_trusted_only_where_no_successor_was_told_otherwise(history):
    """The ring that the frontend has is the first one's: who follows on that decides, however many came between."""
    _, after = history
    unheard = Unheard()
    for news in after:
        unheard.add(news)
    for kept in unheard.take():
        if isinstance(kept, BackendActive):
            told = [n for n in after if isinstance(n, BackendActive) and n.handle == kept.handle]
            own = next(n for n in told if n.backend == kept.backend)
            if kept.take_published:
                assert own.take_published


def test_a_successor_that_never_was_heard_of_leaves_its_distrust_behind():
    unheard = Unheard()
    handle = HANDLES[0]
    unheard.add(BackendWithdrawn(handle, peer(1)))
    unheard.add(BackendOffered(handle, peer(2)))
    unheard.add(BackendActive(handle, peer(2), take_published=False))
    unheard.add(BackendWithdrawn(handle, peer(2)))
    unheard.add(BackendOffered(handle, peer(3)))
    unheard.add(BackendActive(handle, peer(3), take_published=True))
    assert unheard.take() == [
        BackendWithdrawn(handle, peer(1)),
        BackendOffered(handle, peer(3)),
        BackendActive(handle, peer(3), take_published=False),
    ]
    unheard.add(BackendActive(handle, peer(4), take_published=True))
    assert unheard.take() == [BackendActive(handle, peer(4), take_published=True)]
