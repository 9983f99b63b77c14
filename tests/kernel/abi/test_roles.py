"""What a role is handed as it starts, in golden bytes: its own incarnation reads it, and a later one of another age."""

import msgspec
import pytest

from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.ids import VbdHandle
from kernel.abi.roles import GuestVbd, NativeStart

VBD = GuestVbd(VbdHandle(1), "vda", 8, True)
DISK = DiskConfig(target="/i", vdev="vda", access="ro")
CONFIG = GuestConfig(name="n", type="native", program="/p", args=["a"], peers=["m"], disk=[DISK])

GOLDEN = (
    "82a6636f6e666967de0010a46e616d65a16ea66d656d6f727940a474797065a66e6174697665a5766370757301a463707573c0a66b65"
    "726e656cc0a772616d6469736bc0a4726f6f74c0a56578747261a0a770726f6772616da22f70a46172677391a161a5706565727391a1"
    "6da46469736b9186a6746172676574a22f69a476646576a3766461a6616363657373a2726fa76261636b656e64a7626c6b6261636ba6"
    "666f726d6174a3726177a76261636b696e67c0ab6f6e5f706f7765726f6666a764657374726f79a96f6e5f7265626f6f74a772657374"
    "617274a86f6e5f6372617368a764657374726f79a4766264739184a668616e646c6501a476646576a3766461a7736563746f727308a9"
    "726561645f6f6e6c79c3"
)


def test_a_native_guests_start_has_the_bytes_that_it_always_had():
    start = NativeStart(CONFIG, [VBD])
    assert msgspec.msgpack.encode(start).hex() == GOLDEN
    assert msgspec.msgpack.decode(bytes.fromhex(GOLDEN), type=NativeStart) == start


@pytest.mark.parametrize(
    "fields",
    [
        {"args": ["x"] * 65},
        {"args": ["x" * 1025]},
        {"args": ["\0"]},
        {"peers": ["p"] * 65},
        {"peers": ["-p"]},
        {"program": "/" + "p" * 5000},
        {"type": "hvm"},
        {"memory": 23},
        {"memory": 65537},
        {"vcpus": 2},
        {"owner": "x"},
    ],
    ids=str,
)
def test_a_configuration_out_of_bounds_is_none(fields):
    good = msgspec.to_builtins(CONFIG)
    assert msgspec.convert(good, GuestConfig) == CONFIG
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | fields, GuestConfig)
