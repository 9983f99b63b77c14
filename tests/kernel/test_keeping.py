"""What the log keeper does with bytes."""

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.keeping import TAIL_BYTES
from kernel.keeping import BURST_BYTES, Keeping, LogStamper, TailBuffer

PEER = Peer(DomId(3), Generation(2))


@given(st.lists(st.binary(max_size=40), max_size=20), st.data())
def test_lines_are_the_same_however_the_pipe_cuts_them(lines, data):
    whole = b"".join(json.dumps({"event": line.hex()}).encode() + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    stamper = LogStamper("web", PEER)
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    kept = b"".join(stamper.lines(piece) for piece in pieces) + stamper.last()
    assert [json.loads(line)["event"] for line in kept.splitlines()] == [line.hex() for line in lines]


def test_a_domain_cannot_speak_for_another():
    (line,) = LogStamper("web", PEER).lines(b'{"domain":"dom0","generation":9,"event":"x"}\n').splitlines()
    assert json.loads(line) == {"domain": "web", "domid": 3, "generation": 2, "event": "x"}


def test_what_is_no_event_is_kept_as_text():
    lines = LogStamper("web", PEER).lines(b"Traceback\n[1]\n\xff\n").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["log.unreadable"] * 3


def test_the_line_that_a_kill_cut_off_is_kept():
    stamper = LogStamper("web", PEER)
    assert stamper.lines(b'{"event":"half') == b""
    assert json.loads(stamper.last())["text"] == '{"event":"half'


@given(st.lists(st.binary(max_size=TAIL_BYTES // 3), max_size=12))
def test_the_tail_is_the_last_bytes_and_no_more(pieces):
    tail = TailBuffer()
    for piece in pieces:
        tail.take(piece)
    assert tail.bytes() == b"".join(pieces)[-TAIL_BYTES:]


def test_a_flood_is_cut_and_the_gap_is_counted(tmp_path):
    path = tmp_path / "log"
    keeping = Keeping(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), None, None)
    piece = b"x" * 65536
    sent = 3 * BURST_BYTES // len(piece)
    for _ in range(sent):
        keeping.take(piece)
    keeping.close()
    kept = path.read_bytes()
    lost = int(kept.rpartition(b"[log.gap: ")[2].split()[0])
    assert kept.count(b"x") + lost == sent * len(piece)
    assert kept.count(b"x") >= BURST_BYTES - len(piece)
