"""The initramfs's format."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triovisor.provision import cpio
from triovisor.provision.initramfs import initramfs_entries

GOLDEN = (
    b"070701" b"00000001" b"000081A4" b"00000000" b"00000000" b"00000001" b"00000000" b"00000003"
    b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000" b"a\0" b"abc\0"
    b"070701" b"00000000" b"00000000" b"00000000" b"00000000" b"00000001" b"00000000" b"00000000"
    b"00000000" b"00000000" b"00000000" b"00000000" b"0000000B" b"00000000" b"TRAILER!!!\0" b"\0\0\0"
)  # fmt: skip


def test_one_file_gives_the_bytes_that_the_kernels_document_describes():
    assert cpio.archive([cpio.file("a", b"abc")]) == GOLDEN + bytes(512 - len(GOLDEN))


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30)
entries = st.one_of(
    st.builds(cpio.folder, names),
    st.builds(cpio.file, names, st.binary(max_size=50)),
    st.builds(cpio.link, names, names),
    st.builds(cpio.character_device, names, st.integers(0, 255), st.integers(0, 255)),
)


@given(st.lists(entries, max_size=20))
def test_what_was_packed_is_what_is_parsed(packed):
    assert cpio.parse(cpio.archive(packed)) == packed


@pytest.mark.parametrize("bad", [b"", b"x" * 200, GOLDEN[:50], GOLDEN[:-60]])
def test_what_is_no_archive_is_said_with_its_offset(bad):
    with pytest.raises(ValueError, match="offset"):
        cpio.parse(bad)


def test_the_initramfs_has_each_folder_before_what_is_in_it_and_links_to_every_applet():
    archive = initramfs_entries(b"programs", b"busybox", ["sh", "init", "ls", "busybox"], {"virtio_blk.ko": b"module"})
    seen = {""}
    for entry in archive:
        assert entry.path.rpartition("/")[0] in seen
        assert entry.path not in seen
        seen.add(entry.path)
    found = {entry.path: entry for entry in archive}
    assert found["init"].content == b"bin/programs"
    assert found["bin/ls"].content == b"busybox"
    assert found["bin/init"].content == b"programs"
    assert found["lib/modules/virtio_blk.ko"].content == b"module"
    assert stat.S_ISCHR(found["dev/console"].mode)
    assert found["dev/console"].device == (5, 1)
