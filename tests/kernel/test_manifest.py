"""The boot manifest: the default is whole, and every mistake is one line with a mend."""

from pathlib import Path

import pytest

from kernel.manifest import DEFAULT_MANIFEST, Device, DriverManifest, ManifestError, load_manifest, parse_cpus


def test_the_default_manifest_says_what_the_code_would_do_without_it():
    manifest = load_manifest(DEFAULT_MANIFEST)
    raw, qcow2, consoles, store = manifest.driver
    assert raw == DriverManifest("blkback", "drivers.blkback.main")
    assert (qcow2.name, qcow2.role, qcow2.format) == ("qcowback", "drivers.blkback.qcow2", "qcow2")
    assert Path(qcow2.program).name == "qemu-storage-daemon"
    assert (consoles.role, consoles.device, consoles.standby) == ("drivers.console.main", Device.CONSOLE, False)
    assert (store.role, store.device, store.standby) == ("drivers.store.main", Device.XENSTORE, True)
    assert manifest.faults is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("driver = [\n", "line"),
        ("drivers = []\n", "`drivers`"),
        ("driver = [{name = 'b', role = 'x', standbye = true}]\n", "`standbye`"),
        ("driver = [{name = 'b', role = 'os; x'}]\n", "$.driver[0].role"),
        ("driver = []\nfaults = 'yes'\n", "$.faults"),
        ("driver = [{name = 'b', role = 'x'}, {name = 'b', role = 'x'}]\n", "'b' is taken"),
        ("driver = [{name = 'dom0', role = 'x'}]\n", "'dom0' is taken"),
        ("driver = [{name = 'b', role = 'x', device = 'tape'}]\n", "tape"),
        ("driver = [{name = 'b', role = 'x', device = 'console'}]\n", "standby = false"),
        (
            "driver = [{name = 'a', role = 'x', device = 'console', standby = false}, "
            "{name = 'b', role = 'x', device = 'console', standby = false}]\n",
            "one driver at most",
        ),
        (
            "driver = [{name = 'a', role = 'x', device = 'xenstore'}, {name = 'b', role = 'x', device = 'xenstore'}]\n",
            "there is one store",
        ),
        ("driver = [{name = 'b', role = 'x', format = 'vmdk'}]\n", "$.driver[0].format"),
        ("driver = [{name = 'b', role = 'x', format = 'qcow2'}]\n", "'b' has no program"),
        ("driver = [{name = 'b', role = 'x', restart = {max_deaths = 0}}]\n", "max_deaths"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path, text, said):
    path = tmp_path / "boot.toml"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_said_with_the_option_that_names_another(tmp_path):
    with pytest.raises(ManifestError, match="--manifest"):
        load_manifest(tmp_path / "nope.toml")


@pytest.mark.parametrize(("text", "cpus"), [("0", (0,)), ("0,2", (0, 2)), ("1-3,2", (1, 2, 3))])
def test_cpus_are_read_as_xl_reads_them(text, cpus):
    assert parse_cpus(text) == cpus
