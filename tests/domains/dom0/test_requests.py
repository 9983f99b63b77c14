"""Each request of an administrator, through the real client, socket and service."""

import socket

import pytest
import trio

from kernel.abi import domctl as d
from kernel.abi.guest_config import DomainState, GuestConfig, ShutdownReason
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import DriverGivenUp
from tests.domains.dom0.asking import ask, refused
from tests.domains.dom0.fake_hypervisor import domain_info


async def test_list_gives_every_domain(hypervisor, client):
    hypervisor.add_guest()
    assert await ask(client.list) == list(hypervisor.domains.values())


async def test_list_gives_more_domains_than_a_packet_holds(hypervisor, client):
    for number in range(1000):
        hypervisor.add_guest(f"web{number}")
    assert await ask(client.list) == list(hypervisor.domains.values())
    assert (await ask(client.info, "web999")).name == "web999"


async def test_info_finds_a_domain_by_its_name(hypervisor, client):
    guest = hypervisor.add_guest()
    assert await ask(client.info, "web") == guest.info


async def test_info_without_a_name_tells_of_the_host(hypervisor, client):
    assert await ask(client.host) == {"host": "test", "nr_cpus": 2}


async def test_an_unknown_name_is_refused_with_the_nearest(hypervisor, client):
    hypervisor.add_guest("web1")
    error = await refused(client.info, "web")
    assert error.status is Status.ENOENT
    assert "'web1'" in error.why


async def test_a_name_that_cannot_be_is_refused_before_it_is_sent(hypervisor, client):
    assert (await refused(client.info, "-x")).status is Status.EINVAL
    assert not any(isinstance(call, d.DomctlGetInfo) for call in hypervisor.calls)


async def test_create_hands_the_configuration_on_and_gives_the_domid(hypervisor, client):
    config = GuestConfig(name="db", memory=96, extra="quiet")
    assert await ask(client.create, config) == 2
    assert next(call.config for call in hypervisor.calls if isinstance(call, d.DomctlCreate)) == config


async def test_a_refusal_of_the_hypervisor_reaches_the_administrator_as_it_is(hypervisor, client):
    hypervisor.refusals[d.DomctlCreate] = Refused(Status.EBUSY, "/x.img: another writes it: give the guest its own")
    error = await refused(client.create, GuestConfig(name="db"))
    assert (error.status, error.why) == (Status.EBUSY, "/x.img: another writes it: give the guest its own")


async def test_destroy_names_the_domain_by_its_number(hypervisor, client):
    guest = hypervisor.add_guest()
    await ask(client.destroy, "web")
    assert hypervisor.calls[-1].domid == guest.info.domid
    assert "web" not in hypervisor.domains


async def test_shutdown_without_waiting_only_asks(hypervisor, client):
    hypervisor.add_guest()
    await ask(client.shutdown, "web", reboot=True)
    assert hypervisor.calls[-1].reason is ShutdownReason.REBOOT


async def test_shutdown_waits_until_the_guest_is_gone(hypervisor, client, nursery):
    hypervisor.add_guest()
    waiting = trio.Event()

    async def wait():
        await ask(client.shutdown, "web", wait_s=10)
        waiting.set()

    nursery.start_soon(wait)
    await trio.sleep(0.2)
    assert not waiting.is_set()
    del hypervisor.domains["web"]
    with trio.fail_after(5):
        await waiting.wait()


async def test_shutdown_says_so_when_the_guest_does_not_end_in_time(hypervisor, client):
    hypervisor.add_guest()
    error = await refused(client.shutdown, "web", wait_s=0.2)
    assert error.status is Status.ETIMEDOUT
    assert "tv destroy web" in error.why


async def test_shutdown_says_so_when_the_guest_crashes_instead(hypervisor, client):
    guest = hypervisor.add_guest()
    hypervisor.domains["web"] = domain_info(guest.info.domid, "web", state=DomainState.CRASHED)
    assert (await refused(client.shutdown, "web", wait_s=5)).status is Status.EHOSTDOWN


async def test_a_reboot_is_waited_for_until_the_next_incarnation_runs(hypervisor, client, nursery):
    guest = hypervisor.add_guest()
    done = trio.Event()

    async def wait():
        await ask(client.shutdown, "web", reboot=True, wait_s=10)
        done.set()

    nursery.start_soon(wait)
    await trio.sleep(0.1)
    hypervisor.domains["web"] = domain_info(guest.info.domid, "web", generation=2, state=DomainState.STARTING)
    await trio.sleep(0.2)
    assert not done.is_set()
    hypervisor.domains["web"] = domain_info(guest.info.domid, "web", generation=2)
    with trio.fail_after(5):
        await done.wait()


@pytest.mark.parametrize("name", ["blkback", "dom0"])
async def test_only_guests_can_be_shut_down(hypervisor, client, name):
    assert (await refused(client.shutdown, name)).status is Status.EINVAL


async def test_drivers_are_listed_and_made_to_fail(hypervisor, client):
    (driver,) = await ask(client.drivers)
    assert (driver.name, driver.standby_pid, driver.vbds[0].vdev) == ("blkback", 4002, "vda")
    await ask(client.inject, "blkback", "kill@reply", 3)
    call = hypervisor.calls[-1]
    assert (call.driver, call.what, call.count) == ("blkback", "kill@reply", 3)


async def test_a_count_that_no_hypercall_can_carry_is_refused_and_dom0_lives(hypervisor, client):
    assert (await refused(client.inject, "blkback", "hang", 2**40)).status is Status.EINVAL
    assert await ask(client.list)


async def test_dmesg_gives_a_console_of_any_bytes_whole(hypervisor, client):
    console = bytes(range(256)) * 1024
    hypervisor.tails["web"] = console
    hypervisor.tails[None] = b'{"event":"x"}\n'
    assert await ask(client.dmesg, "web") == console
    assert await ask(client.dmesg) == b'{"event":"x"}\n'


async def test_dmesg_of_a_guest_that_never_was_is_refused(hypervisor, client):
    assert (await refused(client.dmesg, "nobody")).status is Status.ENOENT


async def test_dmesg_says_so_when_the_log_keeper_is_gone(hypervisor, client):
    hypervisor.keeper.socket.shutdown(socket.SHUT_RDWR)
    assert (await refused(client.dmesg, "web")).status is Status.EIO


@pytest.mark.parametrize(("ask_for", "hypercall"), [("pause", d.DomctlPause), ("unpause", d.DomctlUnpause)])
async def test_a_guest_is_paused_and_unpaused_by_its_number(hypervisor, client, ask_for, hypercall):
    guest = hypervisor.add_guest()
    await ask(getattr(client, ask_for), "web")
    assert isinstance(hypervisor.calls[-1], hypercall)
    assert hypervisor.calls[-1].domid == guest.info.domid
    assert (await refused(getattr(client, ask_for), "wep")).why == (
        "there is no domain 'wep', only 'web': tv list shows all"
    )


async def test_a_driver_is_restarted_by_its_name(hypervisor, client):
    await ask(client.restart_driver, "blkback")
    assert hypervisor.calls[-1] == d.SysctlRestart(hypervisor.calls[-1].request, "blkback")


@pytest.mark.parametrize(
    ("paused_for", "says"),
    [
        (["dom0"], "guest web is paused: tv unpause web"),
        (["blkback"], "guest web is paused, and blkback given up: tv driver restart blkback"),
        (["dom0", "blkback"], "guest web is paused, and blkback given up: tv unpause web; tv driver restart blkback"),
    ],
)
async def test_a_paused_guest_takes_no_command_and_no_shutdown_and_says_what_lets_it_go_on(
    hypervisor, client, paused_for, says
):
    hypervisor.add_guest(state=DomainState.PAUSED, paused_for=paused_for)
    for act in (lambda: client.exec("web", ["true"]), lambda: client.shutdown("web")):
        error = await refused(act)
        assert (error.status, error.why) == (Status.EHOSTDOWN, says)


async def test_a_guest_that_is_paused_while_its_end_is_waited_for_is_told_of(hypervisor, client, nursery):
    guest = hypervisor.add_guest()
    paused = domain_info(guest.info.domid, "web", state=DomainState.PAUSED, paused_for=["dom0"])

    async def pause():
        await trio.sleep(0.2)
        hypervisor.domains["web"] = paused

    nursery.start_soon(pause)
    with trio.fail_after(10):
        assert (await refused(client.shutdown, "web", wait_s=30)).why == "guest web is paused: tv unpause web"


async def test_dom0_logs_a_driver_that_is_given_up(hypervisor, client):
    await hypervisor.tell(DriverGivenUp("blkback", 6, ("web",)))
    await ask(client.list)
    told = [fields for event, fields in hypervisor.log.events if event == "driver.given_up"]
    assert told == [{"name": "blkback", "deaths": 6, "guests": ["web"]}]


async def test_a_domain_is_found_by_its_domid_too_and_by_its_name_first(hypervisor, client):
    guest = hypervisor.add_guest("web")
    hypervisor.domains["2"] = domain_info(9, "2")
    assert (await ask(client.info, "0")).name == "dom0"
    assert (await ask(client.info, "2")).domid == 9
    await ask(client.pause, "9")
    assert hypervisor.calls[-1].domid == 9
    assert guest.info.domid == 2


async def test_the_verbs_about_a_guest_are_handed_on_with_all_that_was_said(hypervisor, client):
    domid = hypervisor.add_guest("web").info.domid
    config = GuestConfig(name="web", memory=96)
    await ask(client.rename, "web", "shop")
    await ask(client.update_config, "web", config)
    await ask(client.sysrq, "web", "m")
    await ask(client.reset, "web")
    await ask(client.keep_standby, "blkback", False)
    asked = [call for call in hypervisor.calls if not isinstance(call, d.DomctlGetInfo)][-5:]
    request = asked[0].request
    assert asked[0] == d.DomctlRename(request, domid, "shop")
    assert (asked[1].domid, asked[1].config) == (domid, config)
    assert (asked[2].trigger, asked[2].key) == (d.Trigger.SYSRQ, "m")
    assert (asked[3].trigger, asked[3].key) == (d.Trigger.RESET, "")
    assert (asked[4].driver, asked[4].wanted) == ("blkback", False)


async def test_create_says_whether_it_is_to_stand_still(hypervisor, client):
    await ask(client.create, GuestConfig(name="db"), paused=True)
    assert hypervisor.calls[-1].paused is True


@pytest.mark.parametrize("key", ["", "mm", "M", "/"])
async def test_what_is_no_key_of_sysrq_is_refused_before_it_is_sent(hypervisor, client, key):
    assert (await refused(client.sysrq, "web", key)).status is Status.EINVAL
    assert not any(isinstance(call, d.DomctlTrigger) for call in hypervisor.calls)


async def test_dmesg_takes_a_domid_too(hypervisor, client):
    guest = hypervisor.add_guest("web")
    hypervisor.tails["web"] = b"its console"
    assert await ask(client.dmesg, str(guest.info.domid)) == b"its console"
