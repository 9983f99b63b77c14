"""The wire of xenstore, byte for byte."""

import pytest

from kernel.abi.io.xs_wire import ABS_PATH_MAX, HEADER, OPS, PAYLOAD_MAX, REL_PATH_MAX, ErrorName, Op, pack_message

GOLDEN = [
    (Op.READ, 1, 0, b"/tool\0", "02000000 01000000 00000000 06000000 2f746f6f6c00"),
    (Op.WRITE, 0xFFFFFFFF, 7, b"a\0b", "0b000000 ffffffff 07000000 03000000 610062"),
    (Op.ERROR, 2, 0, b"ENOENT\0", "10000000 02000000 00000000 07000000 454e4f454e5400"),
    (Op.WATCH_EVENT, 0, 0, b"p\0t\0", "0f000000 00000000 00000000 04000000 70007400"),
    (Op.DIRECTORY_PART, 3, 0, b"", "16000000 03000000 00000000 00000000"),
]


@pytest.mark.parametrize(("op", "req_id", "tx_id", "body", "golden"), GOLDEN)
def test_a_message_is_a_header_of_four_words_and_its_body(op, req_id, tx_id, body, golden):
    assert pack_message(op, req_id, tx_id, body) == bytes.fromhex(golden)
    assert HEADER.unpack_from(bytes.fromhex(golden)) == (op, req_id, tx_id, len(body))


def test_ops_and_errors_are_those_of_xen():
    names = (
        "CONTROL DIRECTORY READ GET_PERMS WATCH UNWATCH TRANSACTION_START TRANSACTION_END INTRODUCE RELEASE "
        "GET_DOMAIN_PATH WRITE MKDIR RM SET_PERMS WATCH_EVENT ERROR IS_DOMAIN_INTRODUCED RESUME SET_TARGET"
    )
    assert [op.name for op in sorted(Op)] == [*names.split(), "RESET_WATCHES", "DIRECTORY_PART", "INVALID"]
    assert [op.value for op in sorted(Op)] == [*range(20), 21, 22, 0xFFFF]
    assert OPS == 23
    errors = (
        "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN EISCONN E2BIG EPERM"
    )
    assert list(ErrorName) == errors.split()
    assert (PAYLOAD_MAX, ABS_PATH_MAX, REL_PATH_MAX) == (4096, 3072, 2048)
