"""The parts of a host that matter, as data: how each is looked at, what it costs to lack it, what mends that."""

from collections.abc import Callable
from dataclasses import dataclass

from kernel.doctor import linux, programs
from kernel.doctor.finding import Answer, Finding, State

__all__ = ["PARTS", "Part"]

REDUCED_JAIL = "the reduced jail: only the promises about crashes and hangs are carried"
MAKE_NAMESPACES = "run as root, or in a container: docker run --privileged …"
PROVISION = "python -m triovisor.provision"


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `optional`: every promise can be carried without it."""

    name: str
    look: Callable[[], Answer]
    cost: str
    mend: str
    optional: bool = False

    def answer(self) -> Answer:
        """Look at the host. What the system refuses is missing."""
        try:
            return self.look()
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return Answer(State.MISSING, f"{where}{error.strerror or error}")

    def finding(self, answer: Answer) -> Finding:
        """Put the answer with what it means."""
        return Finding(self.name, answer.state, answer.value, self.cost, answer.mend or self.mend, self.optional)


def _newer_kernel(release: str) -> str:
    return f"boot Linux {release} or later"


def _package(name: str) -> str:
    return f"{PROVISION} (or, by root's hand: apt-get install --no-install-recommends {name})"


PARTS: tuple[Part, ...] = (
    Part("architecture", linux.architecture, "nothing runs: rings and filters are x86-64's", "use an x86-64 machine"),
    Part("kernel", linux.kernel_release, "the parts below that it lacks", _newer_kernel("5.13")),
    Part("python", linux.python, "nothing runs", "sudo apt-get install python3"),
    Part("cpus", linux.cpus, "a guest and its driver take turns: slower, longer pauses", "give the machine two CPUs"),
    Part("descriptors", linux.descriptors, "no room for many guests", "raise the hard limit, as root: ulimit -n 4096"),
    Part("namespaces.user", linux.user_namespace, REDUCED_JAIL, MAKE_NAMESPACES),
    Part("namespaces.pid", linux.namespace("pid"), REDUCED_JAIL, MAKE_NAMESPACES),
    Part("namespaces.mount", linux.namespace("mount"), REDUCED_JAIL, MAKE_NAMESPACES),
    Part("namespaces.net", linux.namespace("net"), REDUCED_JAIL, MAKE_NAMESPACES),
    Part("namespaces.ipc", linux.namespace("ipc"), REDUCED_JAIL, MAKE_NAMESPACES),
    Part("clone3", linux.clone3, "nothing: clone(2) takes its place",
         "let the container's filter pass it", optional=True),
    Part("pidfd", linux.pidfd, "no domain: deaths are told by pidfds", _newer_kernel("5.3")),
    Part("seccomp", linux.seccomp, "no filter on a domain's system calls", "boot a kernel with CONFIG_SECCOMP_FILTER"),
    Part("landlock", linux.landlock, REDUCED_JAIL, "boot Linux 5.13 or later with lsm=landlock,…"),
    Part("memfd", linux.memfd, "no grant, and so no disk: a ring cannot be sealed", _newer_kernel("5.1")),
    Part("ofd-locks", linux.ofd_locks, "two writers may take one image", _newer_kernel("3.15")),
    Part("kvm", linux.kvm, "HVM guests run in QEMU's translator, about 20 times slower",
         "sudo chmod a+rw /dev/kvm, or allow nested virtualisation", optional=True),
    Part("shared-memory", linux.shared_memory, "guests outside the full jail run out of memory",
         "sudo mount -o remount,size=1g /dev/shm"),
    Part("guest-kernel", programs.guest_kernel, "no Linux guest", _package("user-mode-linux")),
    Part("guest-modules", programs.guest_modules, "guests have no disks", _package("user-mode-linux")),
    Part("initramfs", programs.initramfs, "no Linux guest", PROVISION),
    Part("lpj", programs.lpj, "each guest boots 0.1 s slower", PROVISION, optional=True),
    Part("busybox", programs.program("busybox"), "the initramfs cannot be built anew",
         _package("busybox-static"), optional=True),
    Part("gcc", programs.program("gcc"), "guest programs cannot be built anew",
         _package("gcc musl-tools linux-libc-dev"), optional=True),
    Part("mke2fs", programs.program("mke2fs"), "no ext4 image can be made, and so no demo", _package("e2fsprogs")),
    Part("qemu-img", programs.program("qemu-img"), "no overlay can be made: tv image needs it",
         _package("qemu-utils"), optional=True),
    Part("qemu-storage-daemon", programs.program("qemu-storage-daemon"), "no disk in qcow2 can be served",
         _package("qemu-system-common"), optional=True),
    Part("py-spy", programs.py_spy, "a hung driver is ended without a sample of where it hung",
         "python -m pip install py-spy"),
)
