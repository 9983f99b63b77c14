"""Pieces are known only after they were written and flushed, and no longer than until they may be given back."""

from hypothesis import given
from hypothesis import strategies as st

from drivers.blkback.pieces import MOST, Pieces

PIECE = 4096
extents = st.tuples(st.integers(0, 100_000), st.integers(1, 20_000))


def touched(extent: tuple[int, int]) -> set[int]:
    offset, length = extent
    return {at // PIECE for at in (*range(offset, offset + length, PIECE), offset + length - 1)}


@given(st.lists(st.tuples(st.sampled_from(["learn", "forget"]), extents), max_size=30), extents)
def test_a_write_is_known_if_and_only_if_all_its_pieces_are(steps, asked):
    pieces, model = Pieces(PIECE), set()
    for what, extent in steps:
        if what == "learn":
            pieces.learn([extent])
            model |= touched(extent)
        else:
            pieces.forget(*extent)
            model -= touched(extent)
    assert pieces.knows(*asked) == (touched(asked) <= model)


def test_what_is_remembered_is_bounded():
    pieces = Pieces(512)
    for n in range(3):
        pieces.learn([(n * MOST * 512, MOST * 512)])
    assert not pieces.knows(0, 512)
    pieces.learn([(0, 512)])
    assert pieces.knows(0, 512)


def test_to_forget_far_more_than_is_known_is_soon_done():
    pieces = Pieces(512)
    pieces.learn([(0, 1024)])
    pieces.forget(512, 1 << 60)
    assert pieces.knows(0, 512)
    assert not pieces.knows(512, 512)
