"""A channel under Trio."""

import trio

from domains.runtime.channel import Channel
from kernel.abi import packet


async def test_several_tasks_may_send_on_a_full_channel_and_no_packet_is_lost():
    ours, theirs = packet.pair()
    sender, receiver = Channel(ours.detach()), Channel(theirs.detach())
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(sender.send, bytes([number]) * 30_000)
        while len(got) < 40:
            got.append((await receiver.receive()).data)
    assert {data[0] for data in got} == set(range(40))
    assert {len(data) for data in got} == {30_000}
    sender.close()
    receiver.close()
