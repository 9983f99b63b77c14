"""The catalogue of log events: what each means, and which fields it may carry.

Every line has besides: `domain`, `domid`, `generation` (whose pipe it came through, stamped by the keeper), `ns`
(CLOCK_MONOTONIC of the host), `level`, `event`. `name` and `peer` say whom an event of the hypervisor's is about.
"""

from typing import NamedTuple

__all__ = ["LOG_EVENTS", "LogEvent"]


class LogEvent(NamedTuple):
    """One event: its meaning in a sentence, and the names of its fields, separated by blanks."""

    meaning: str
    fields: str


LOG_EVENTS = {
    "actor.died": LogEvent("the process of a guest's devices is gone; its reaper has forked another", "how"),
    "actor.started": LogEvent("a successor serves the guest's devices; the guest goes on", "number"),
    "admin.asked": LogEvent("an administrator asked for something", "uid what name"),
    "admin.refused": LogEvent("an administrator, or what it asked for, was refused", "uid status why sessions"),
    "agent.broke_abi": LogEvent("a guest's actor sent Dom0 what is no message about a command", "guest peer what"),
    "agent.faulted": LogEvent("the agent in the guest broke its protocol, or says that we did", "what evidence by_us"),
    "client.ended": LogEvent("the store ended a client that broke the rules of its connection", "connection why"),
    "command.abandoned": LogEvent("a command lost its channel to Dom0", "error"),
    "command.ended": LogEvent("a command in a guest ended, or its administrator left", "guest left status signal why"),
    "console.connected": LogEvent("the console driver has a guest's console ring", "guest frontend"),
    "console.line_cut": LogEvent("keys of a line too long for who reads by lines were dropped", "keys"),
    "console.outran": LogEvent("a guest overwrites what a watcher has not seen, having waited for him", "unseen"),
    "core.failed": LogEvent("a guest's memory could not be written at its end", "why"),
    "core.without_kernel": LogEvent("a core of a guest has its memory, and not its kernel's own variables", "why"),
    "daemon.failed": LogEvent("a storage daemon failed, and this incarnation with it", "handle why"),
    "domain.cloned": LogEvent("a process for an incarnation exists, in its jail", "name peer pid jail missing"),
    "domain.died": LogEvent("an incarnation is gone with all its threads", "name peer how lived_s"),
    "domain.entered": LogEvent("an incarnation's own first word", "role jail"),
    "domain.failed": LogEvent("an incarnation's code raised what nobody handled", "error traceback"),
    "domain.faulted": LogEvent("an incarnation broke the ABI and is ended", "name peer what evidence"),
    "domain.hung": LogEvent("an incarnation gave no pong in time; it, or its actor, is ended", "name peer silent_s"),
    "domain.last_words_unreadable": LogEvent("what a dead incarnation had sent broke the ABI", "peer what"),
    "domain.sampled": LogEvent("where the threads of a hung incarnation were", "name peer threads"),
    "domain.shut_down": LogEvent("an incarnation says that its work has ended", "name peer reason detail"),
    "domain.soft_reset": LogEvent("an incarnation goes on in another process, with new rings", "name peer how"),
    "domain.started": LogEvent("an incarnation takes upcalls", "name peer"),
    "domain.tasks_dumped": LogEvent("where the Trio tasks of this, hung, incarnation wait", "tasks"),
    "domain.uninterruptible": LogEvent("a silent incarnation is in uninterruptible sleep; waited for", "name peer"),
    "domain.unkillable": LogEvent("a killed incarnation is still there; its successor waits", "name peer after_s"),
    "driver.activated": LogEvent("an incarnation was handed the images and serves", "name peer take_published"),
    "driver.backing_off": LogEvent("the next incarnation is cloned only after a while", "name delay_s"),
    "driver.given_up": LogEvent(
        "a driver died too often and is left dead; `guests`, 32 at most, have a disk of it and are being paused",
        "name deaths window_s guests",
    ),
    "driver.restarted": LogEvent("an administrator wants another incarnation of a driver", "name peer state"),
    "driver.standby_wanted": LogEvent("an administrator wants a standby of a driver, or none", "name wanted"),
    "fault.armed": LogEvent("this driver was told to misbehave", "what count"),
    "fault.injected": LogEvent("Dom0 told a driver to misbehave", "driver peer what count"),
    "fault.refused": LogEvent("the hypervisor did not take our word for a peer's fault", "handle backend frontend why"),
    "guest.core_dumped": LogEvent("a core of a guest's memory was written", "name path bytes"),
    "guest.core_failed": LogEvent("no core of a guest's memory was written that was to be", "name why"),
    "guest.created": LogEvent("a guest was created", "name type memory cpus"),
    "guest.ended": LogEvent("an incarnation of a guest ended; its on_* setting says what follows", "name reason how"),
    "guest.faulted": LogEvent("our guest's kernel broke the rules of a device", "what"),
    "guest.given_up": LogEvent("a guest crashed too often and is left dead", "name deaths"),
    "guest.not_restarted": LogEvent("a guest could not be started again", "name why"),
    "guest.pause_failed": LogEvent("a guest could not be paused, or unpaused (`order`)", "name order why"),
    "guest.paused": LogEvent("a guest stands still, for Dom0 or for drivers that are given up", "name paused_for"),
    "guest.ready": LogEvent("the agent in the guest answers", "release boot_id trouble"),
    "guest.reconfigured": LogEvent("a guest is to be made from something else at its next start", "name"),
    "guest.renamed": LogEvent("a guest has another name", "name before"),
    "guest.stopping": LogEvent("the guest goes down", "mode"),
    "guest.unpaused": LogEvent("a guest that stood still goes on", "name"),
    "hypercall.refused": LogEvent(
        "a hypercall was answered with a status that is not OK; `unlogged`: so many more since the last one",
        "name peer call status why unlogged",
    ),
    "hypervisor.ready": LogEvent(
        "Dom0 takes upcalls, and so does every driver that is not given up; `missing`: what the reduced jail lacks",
        "jail missing",
    ),
    "hypervisor.started": LogEvent("the first event of a run", "version pid run"),
    "hypervisor.stopped": LogEvent("the last event of a run", ""),
    "hypervisor.stopping": LogEvent("the hypervisor shuts down", "guests"),
    "image.refused": LogEvent("a vbd's image is not opened by the storage daemon; its requests fail", "handle why"),
    "keeper.died": LogEvent("the log keeper is gone; another is started", "how"),
    "keeper.started": LogEvent("another log keeper has every pipe that is not at its end", "pid pipes"),
    "log.dropped": LogEvent("so many events of this domain found its pipe full and are lost", "count"),
    "log.gap": LogEvent("so many bytes of this domain went past its rate or size and are lost", "bytes"),
    "log.unreadable": LogEvent("a domain wrote what is no event", "text"),
    "offer.refused": LogEvent("Dom0's offer of a command came to nothing", "why"),
    "orders.unreadable": LogEvent("Dom0's channel for commands broke the ABI", "error"),
    "port.gone": LogEvent("a port to be closed had been freed", "port"),
    "ring.faulted": LogEvent(
        "one end of a vbd says that the other broke the ring's rules",
        "name peer accused vbd handle frontend backend what evidence",
    ),
    "ring.refused": LogEvent("a ring could not be connected; one end had died", "handle frontend backend why"),
    "shutdown.refused": LogEvent("the agent in the guest could not be asked to shut down", "why"),
    "store.lost": LogEvent("a domain's channel to the store has ended otherwise than by its close", "why"),
    "store.recovered": LogEvent("a store serves, with all that was there", "nodes connections"),
    "upcall.ignored": LogEvent("Dom0 got an upcall that is none of its affairs", "what"),
    "vbd.connected": LogEvent("a backend has mapped a frontend's ring", "vbd handle frontend backend"),
    "vbd.unserved": LogEvent("the image could not be opened for a successor; the vbd waits", "vbd handle backend why"),
    "watch.gone": LogEvent("a watch to be removed was gone", "path"),
    "xenstore.refused": LogEvent("a program was refused at the store's socket: too many are there", "streams"),
    "zygote.died": LogEvent("a zygote is gone; the next order starts another", "role"),
    "zygote.started": LogEvent("a zygote runs; without a role it is the base", "role pid"),
}
