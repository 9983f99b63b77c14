"""Every verb of `tv` from end to end, against a real hypervisor: as text with `xl`'s columns, and as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.abi.guest_config import Action, DomainState
from tests.promises.console_ends import TV, tv_on_a_terminal
from tests.promises.events import wait_until
from tests.promises.lab import start_lab
from triovisor.cli_absent import ABSENT

CTRL_BRACKET, TAB = b"\x1d", b"\t"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), console=True, standby=True) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


@pytest.fixture
def tv(lab):
    """Run `tv`; what it prints. It must end with this status, and say something only where that is not 0."""

    def tv(*words: str, status: int = 0, stdin: str = "") -> str:
        done = subprocess.run(
            [*TV, "--run", str(lab.run), *words], input=stdin, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return tv


@pytest.fixture
def web(lab, tmp_path):
    """A guest's TOML with a disk, and the guest."""
    image = tmp_path / "web.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    toml = tmp_path / "web.toml"
    toml.write_text('name = "web"\nmemory = 48\ndisk = ["web.img,raw,vda"]\n')
    lab.client.create(_load(toml))
    lab.run_in("web", "true")
    return toml


def _load(toml: Path):
    from triovisor.config import load

    return load(toml)


def row(text: str, name: str) -> list[str]:
    """The words of the line about that domain."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_list_shows_all_or_those_that_are_named_and_with_l_what_they_are_made_from(tv, web):
    assert tv("list").splitlines()[0].split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
    domid = row(tv("list"), "web")[1]
    assert [line.split()[0] for line in tv("list", domid, "dom0").splitlines()[1:]] == ["web", "dom0"]
    assert tv("list", "wbe", status=1) == "tv: there is no domain 'wbe': tv list shows all\n"
    (long,) = json.loads(tv("list", "-l", "web"))
    assert (long["config"]["memory"], long["config"]["disk"][0]["vdev"]) == (48, "vda")
    assert json.loads(tv("list", "--json", "web"))[0]["config"] is None


def test_create_takes_overrides_and_can_only_look(tv, lab, web):
    told = json.loads(tv("create", "-n", str(web), "name=db", "memory=32", "disk=[]", "on_crash=preserve"))
    assert (told["name"], told["memory"], told["disk"], told["on_crash"]) == ("db", 32, [], "preserve")
    assert "db" not in tv("list")
    made = json.loads(tv("create", str(web), "name=db", "memory=32", "disk=[]", "--json"))
    assert row(tv("list"), "db")[1:3] == [str(made["domid"]), "32"]
    assert "memory = 8: a guest needs" in tv("create", str(web), "memory=8", status=1)
    assert "did you mean 'memory'?" in tv("create", str(web), "memry=8", status=1)


def test_create_p_has_a_guest_stand_still_until_it_is_let_go(tv, lab, web):
    tv("create", "-p", str(web), "name=still", "disk=[]")
    wait_until(lambda: row(tv("list"), "still")[4] == "--p---", "the guest is paused")
    assert lab.client.info("still").paused_for == ["dom0"]
    tv("unpause", "still")
    assert tv("exec", "still", "--", "echo", "goes", "on") == "goes on\n"


def test_create_c_attaches_the_console(lab, web):
    with tv_on_a_terminal(lab.run, "create", "-c", str(web), "name=shown", "disk=[]") as screen:
        screen.wait(b"created shown, domid")
        screen.wait(b"Press Enter for a shell on this console.")
        screen.type(CTRL_BRACKET)
        assert screen.end() == 0


def test_config_update_counts_from_the_next_start_on(tv, lab, web):
    tv("config-update", "web", str(web), "memory=56", "extra=tv.marked")
    assert row(tv("list"), "web")[2] == "48"
    assert json.loads(tv("list", "-l", "web"))[0]["config"]["memory"] == 56
    assert json.loads(tv("reboot", "-w", "web", "--json")) == {"done": "reboot", "name": "web", "all": False}
    assert row(tv("list"), "web")[2] == "56"
    assert "tv.marked" in tv("exec", "web", "--", "cat", "/proc/cmdline")
    assert lab.log.all("guest.reconfigured", name="web")


@pytest.mark.parametrize(
    ("key", "mend"), [("name=other", "tv rename"), ("disk=[]", "tv destroy, then tv create")], ids=["name", "disk"]
)
def test_config_update_refuses_what_would_be_another_guest(tv, web, key, mend):
    said = tv("config-update", "web", str(web), key, status=1)
    assert said.startswith(f"tv: guest web: {key.partition('=')[0]} cannot be changed while it lives: {mend}")


def test_shutdown_a_w_ends_all_guests_and_waits_for_it(tv, web):
    tv("create", str(web), "name=second", "disk=[]")
    tv("shutdown", "-a", "-w")
    assert {line.split()[0] for line in tv("list").splitlines()[1:]} == {"dom0", "blkback", "console"}
    assert "name one guest, or give -a" in tv("shutdown", status=2)
    assert "name one guest, or give -a" in tv("reboot", "-a", "web", status=2)


def test_shutdown_has_a_deadline_and_says_what_is_left_to_do(tv, lab, web):
    tv("pause", "web")
    assert "tv unpause web" in tv("shutdown", "-w", "web", status=1)
    tv("unpause", "web")
    with lab.client.command("web", ["sh", "-c", "kill -STOP $(pidof agent)"]):
        said = tv("shutdown", "-w", "--timeout", "1", "web", status=1)
    assert "guest web has not powered off within 1 s" in said
    assert "tv destroy web ends it" in said


def test_reboot_keeps_domid_name_disk_and_console(tv, lab, web):
    before, consoles = lab.client.info("web"), tv("dmesg", "web").count("Press Enter")
    tv("exec", "web", "--", "sh", "-c", "echo kept > /dev/vda; sync")
    tv("reboot", "--wait", "web")
    now = lab.client.info("web")
    assert (now.domid, now.name, now.vbds[0].target) == (before.domid, before.name, before.vbds[0].target)
    assert now.generation == before.generation + 1
    assert tv("exec", "web", "--", "head", "-c", "4", "/dev/vda") == "kept"
    assert tv("dmesg", "web").count("Press Enter") == consoles + 1


def test_pause_unpause_and_destroy_act_and_tell_a_script_so(tv, web):
    assert json.loads(tv("pause", "web", "--json")) == {"done": "pause", "name": "web"}
    assert row(tv("list"), "web")[4] == "--p---"
    assert tv("unpause", "web") == ""
    assert json.loads(tv("destroy", "web", "--json")) == {"done": "destroy", "name": "web"}
    assert "there is no domain 'web'" in tv("destroy", "web", status=1)


def test_a_renamed_guest_runs_on_under_its_new_name_with_its_consoles_past(tv, lab, web):
    pid = lab.client.info("web").pid
    tv("rename", "web", "shop")
    assert lab.client.info("shop").pid == pid
    assert "there is no domain 'web'" in tv("info", "web", status=1)
    tv("exec", "shop", "--", "sh", "-c", "echo from the $((40 + 2)) > /dev/console")
    wait_until(lambda: "from the 42" in tv("dmesg", "shop"), "the console goes on under the new name")
    assert "Press Enter" in tv("dmesg", "shop")
    assert "from the 42" in (lab.run / "console" / "shop.log").read_text()
    tv("create", str(web), "disk=[]")
    wait_until(lambda: "Press Enter" in tv("dmesg", "web"), "another guest of the old name has a console of its own")
    assert "from the 42" not in tv("dmesg", "web")
    assert "choose another name" in tv("rename", "web", "shop", status=1)
    tv("reboot", "-w", "shop")
    assert tv("exec", "shop", "--", "hostname") == "shop\n"


def test_a_name_that_an_earlier_guest_had_keeps_that_ones_console_apart(tv, lab, web):
    tv("create", str(web), "name=past", "disk=[]")
    wait_until(lambda: "Press Enter" in tv("dmesg", "past"), "a console is written")
    tv("destroy", "past")
    tv("rename", "web", "past")
    wait_until(lambda: (lab.run / "console" / "past.1.log").exists(), "the earlier file is kept")


def test_domid_and_domname_are_each_others_inverse(tv, web):
    domid = tv("domid", "web").strip()
    assert tv("domname", domid) == "web\n"
    assert json.loads(tv("domid", "web", "--json")) == {"name": "web", "domid": int(domid)}
    assert json.loads(tv("domname", domid, "--json")) == {"name": "web", "domid": int(domid)}
    assert tv("domname", "999", status=1) == "tv: there is no domain 999: tv list shows all\n"


def test_uptime_vcpu_list_and_block_list_have_the_columns_of_xl(tv, lab, web):
    assert tv("uptime").splitlines()[0].split() == ["Name", "ID", "Uptime"]
    name, domid, up = row(tv("uptime", "web"), "web")
    assert (name, domid) == ("web", tv("domid", "web").strip())
    assert up.startswith("0:0")
    assert json.loads(tv("uptime", "web", "--json"))[0]["uptime_s"] > 0
    head = ["Name", "ID", "VCPU", "CPU", "State", "Time(s)", "Affinity"]
    assert tv("vcpu-list").splitlines()[0].split() == head
    (cpu,) = lab.client.info("web").cpus
    assert row(tv("vcpu-list", "web"), "web")[2:5] == ["0", str(cpu), "r--"]
    assert json.loads(tv("vcpu-list", "web", "--json"))[0]["cpu"] == cpu
    assert tv("block-list").splitlines()[0].split()[:4] == ["Name", "Vdev", "BE", "handle"]
    assert row(tv("block-list", "web"), "web")[1:3] == ["vda", "blkback"]
    assert json.loads(tv("block-list", "--json"))[0]["vdev"] == "vda"


def test_info_dmesg_and_exec_give_a_script_json(tv, web):
    assert json.loads(tv("info", "--json"))["nr_cpus"] >= 1
    assert json.loads(tv("info", "web", "--json"))["name"] == "web"
    assert "Press Enter" in json.loads(tv("dmesg", "web", "--json"))["text"]
    assert "hypervisor.ready" in tv("dmesg")
    done = json.loads(tv("exec", "--json", "web", "--", "sh", "-c", "echo out; echo err >&2"))
    assert (done["stdout"], done["stderr"], done["status"]) == ("out\n", "err\n", 0)


def test_a_key_of_sysrq_reaches_the_guests_kernel(tv, web):
    tv("sysrq", "web", "m")
    wait_until(lambda: "sysrq: Show Memory" in tv("dmesg", "web"), "the kernel shows its memory")
    assert json.loads(tv("sysrq", "web", "h", "--json")) == {"done": "sysrq", "name": "web", "key": "h"}
    assert "give a letter or a digit" in tv("sysrq", "web", "mm", status=1)
    assert "dom0 is a dom0, not a guest" in tv("sysrq", "dom0", "m", status=1)
    tv("pause", "web")
    assert "tv unpause it first" in tv("sysrq", "web", "m", status=1)


def test_the_power_and_the_reset_button_do_what_they_say(tv, lab, web):
    generation = lab.client.info("web").generation
    tv("trigger", "web", "reset")
    wait_until(lambda: lab.client.info("web").generation == generation + 1, "it is started anew")
    tv("exec", "web", "--", "true")
    assert lab.client.info("web").last_end == "reset"
    assert "no trigger 'nmi' for guest web" in tv("trigger", "web", "nmi", status=1)
    tv("trigger", "web", "power")
    wait_until(lambda: "web" not in [domain.name for domain in lab.client.list()], "it has powered off")


def test_a_driver_has_a_standby_or_none_as_it_is_told(tv, lab, web):
    active = lab.driver().pid
    assert lab.driver().standby_pid
    tv("driver", "standby", "blkback", "off")
    assert lab.driver().standby_pid is None
    assert lab.driver().pid == active
    assert json.loads(tv("driver", "standby", "blkback", "on", "--json"))["standby"] is True
    assert lab.driver().standby_pid
    assert lab.driver().restarts == 0
    tv("driver", "restart", "blkback")
    assert lab.driver().pid != active
    lab.run_in("web", "dd", "if=/dev/zero", "of=/dev/vda", "bs=4k", "count=4", "conv=fsync")
    assert "no standby" in tv("driver", "standby", "console", "on", status=1)


@pytest.mark.parametrize("verb", ABSENT)
def test_a_verb_of_xl_that_cannot_exist_says_so_and_why(tv, verb):
    assert tv(verb, "web", "--live", status=1) == f"tv: there is no {verb} here: {ABSENT[verb]}\n"


def test_top_is_a_live_screen_that_follows_the_domains_and_the_window(tv, lab, web):
    with tv_on_a_terminal(lab.run, "top", "-d", "0.2", rows=12, columns=60) as screen:
        screen.wait(b"NAME")
        screen.wait(b"web")
        tv("pause", "web")
        screen.wait(b"1 paused")
        screen.wait(b"--p---")
        screen.resize(4, 40)
        screen.type(b"q")
        assert screen.end() == 0
        assert b"\x1b[?1049l" in screen.shown
        assert not screen.is_raw()


def test_top_gives_a_script_a_line_for_each_look(tv, web):
    first, second = map(json.loads, tv("top", "--json", "-d", "0.3", "-i", "2").splitlines())
    assert {row["name"] for row in first} == {"dom0", "blkback", "console", "web"}
    assert all(row["cpu_percent"] is None for row in first)
    assert all(row["cpu_percent"] >= 0 for row in second)


def test_login_is_a_shell_of_the_same_verbs_with_completion_and_history(tv, lab, web, tmp_path):
    history = tmp_path / "state" / "history"
    environment = {"TRIOVISOR_HISTORY": str(history), "TERM": "dumb", "INPUTRC": "/dev/null"}
    with tv_on_a_terminal(lab.run, "login", environment=environment, columns=120) as screen:
        screen.wait(b"dom0# ")
        screen.type(b"domn" + TAB)
        screen.wait(b"domname ")
        screen.type(b"0\n")
        screen.wait(b"dom0\r\n")
        screen.type(b"pause w" + TAB)
        screen.wait(b"web ")
        screen.type(b"\n")
        screen.wait(b"dom0# ")
        screen.type(b"tv exec web true\n")
        screen.wait(b"tv: guest web is paused: tv unpause web")
        screen.type(b"exit\n")
        assert screen.end() == 1
    assert lab.client.info("web").state is DomainState.PAUSED
    assert "pause web" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    with tv_on_a_terminal(lab.run, "login", environment=environment) as screen:
        screen.wait(b"dom0# ")
        screen.type(b"\x10\x10\x10\n")
        screen.wait(b"pause web")


def test_login_between_pipes_does_a_verb_a_line_and_ends_with_the_last_ones_status(tv, web):
    assert tv("login", stdin="# a remark\ntv domid dom0\ndomname 0\n") == "0\ndom0\n"
    assert "no domain 'nobody'" in tv("login", stdin="domid nobody\n", status=1)
    assert "close it" in tv("login", stdin="exec 'web\n", status=2)


def complete(lab, line: str) -> list[str]:
    """What a shell is offered after that line."""
    words = line.split(" ")
    environment = {
        **os.environ, "TRIOVISOR_RUN": str(lab.run), "_TV_COMPLETE": "complete_bash", "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    script = "import sys; sys.argv = ['tv']; from triovisor.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_a_shell_is_offered_verbs_options_and_names(lab, web):
    assert {"create", "config-update", "driver"} <= set(complete(lab, "tv "))
    assert "migrate" not in complete(lab, "tv ")
    assert complete(lab, "tv destroy w") == ["web"]
    assert complete(lab, "tv driver restart blk") == ["blkback"]
    assert "--wait" in complete(lab, "tv shutdown --w")


def test_completion_is_made_for_the_users_shell(tv):
    script = "import sys; sys.argv = ['tv']; from triovisor.cli import main; main()"
    environment = {**os.environ, "_TV_COMPLETE": "source_bash"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "complete -o default -F _tv_completion tv" in done.stdout
    assert "--install-completion" in tv("--help")


def test_the_hypervisors_settings_after_an_end_are_what_config_update_says(tv, lab, web):
    tv("config-update", "web", str(web), "on_poweroff=preserve")
    tv("reboot", "-w", "web")
    assert lab.client.list(long=True)[-1].config.on_poweroff is Action.PRESERVE
    tv("shutdown", "-w", "web")
    assert row(tv("list"), "web")[4] == "---s--"
    assert "reboot: System halted" in tv("list", "-v", "web")
