"""Which system calls each kind of domain may make.

A driver, Dom0 or a native guest runs Python, Trio and threads over descriptors that it was given: a list of what is
allowed. A PV guest runs a whole kernel as an ordinary program (User-Mode Linux, QEMU): a list of what is forbidden.
What is forbidden fails with EPERM rather than kills: libraries try calls they can do without, and an errno in a log
says more than a SIGSYS. Only a foreign ABI kills, for it has no honest use here. clone3 hides its flags from a filter,
so it does not exist (ENOSYS), and the C library falls back to clone.

Numbers are from Linux's `arch/x86/entry/syscalls/syscall_64.tbl`.
"""

import errno as numbers

from domains.runtime.seccomp import ALLOW, Filter, Verdict, all_of, assemble, errno, one_of
from kernel.abi.spawn import JailKind

__all__ = ["filter_for"]

NEWEST = 462
"""mseal, Linux 6.10. Later calls do not exist for a domain until somebody has looked at them."""

_EPERM = errno(numbers.EPERM)
_ENOSYS = errno(numbers.ENOSYS)

_AF_UNIX = 1
_CLONE_THREAD = 0x0001_0000
_CLONE_NEW_ANY = 0x7E02_0080
"""All of CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}."""

_TTY_INJECTIONS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX put text into a terminal's input."""

_DRIVER_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x8008_1272, 0x1268, 0x1277)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, BLKGETSIZE64, BLKSSZGET; BLKDISCARD, which is to a block
device what fallocate is to a file."""

_HARMLESS_PRCTLS = (3, 15, 16, 0x5356_4D41, 0x5961_6D61)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (glibc names arenas), PR_SET_PTRACER (py-spy under Yama)."""

_DRIVER_CALLS = {
    # descriptors: read, write, open, close, stat, fstat, lstat, poll, lseek
    0, 1, 2, 3, 4, 5, 6, 7, 8,
    # memory: mmap, mprotect, munmap, brk, mremap, msync, mincore, madvise
    9, 10, 11, 12, 25, 26, 27, 28,
    # signals: rt_sigaction … rt_sigreturn, pending, timedwait, suspend, sigaltstack; kill, tgkill: the jail alone
    13, 14, 15, 127, 128, 130, 131, 62, 234,
    # vectored, positioned: pread64 … writev, preadv, pwritev, preadv2, pwritev2, sendfile, splice, copy_file_range
    17, 18, 19, 20, 295, 296, 327, 328, 40, 275, 326,
    # access, pipe, select, dup, dup2, dup3, pipe2, fcntl, close_range
    21, 22, 23, 32, 33, 292, 293, 72, 436,
    # sockets that it holds: sendto, recvfrom, sendmsg, recvmsg, shutdown, getsockname, getpeername, set/getsockopt,
    # accept4, recvmmsg, sendmmsg
    44, 45, 46, 47, 48, 51, 52, 54, 55, 288, 299, 307,
    # files that it holds: flock, fsync, fdatasync, ftruncate, fallocate, sync_file_range, fadvise64, getdents64
    73, 74, 75, 77, 285, 277, 221, 217,
    # names: getcwd, readlink, openat, newfstatat, readlinkat, faccessat, faccessat2, statx, umask
    79, 89, 257, 262, 267, 269, 439, 332, 95,
    # who and how much: getpid … getrandom, setsid, uname, prlimit64, getrlimit, getrusage, sysinfo, times, getcpu
    39, 63, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 112, 115, 118, 120, 186, 201, 302, 309, 318, 204, 145,
    # time: nanosleep, clock_gettime, clock_getres, clock_nanosleep, timerfd_create, _settime, _gettime
    35, 228, 229, 230, 283, 286, 287,
    # threads: sched_yield, futex, set_tid_address, set_robust_list, get_robust_list, restart_syscall, rseq, membarrier
    24, 202, 218, 273, 274, 219, 334, 324,
    # waiting: epoll_wait, epoll_ctl, epoll_pwait, epoll_pwait2, epoll_create1, pselect6, ppoll, eventfd2
    232, 233, 281, 441, 291, 270, 271, 290,
    # grants: memfd_create
    319,
    # the end: exit, exit_group
    60, 231,
}  # fmt: skip

_PROGRAM_CALLS = {
    # to run it: fork, vfork, execve, arch_prctl (its loader's), wait4, waitid
    57, 58, 59, 158, 61, 247,
    # to be reached by it, on a name in the jail's own network namespace: connect, bind, listen
    42, 49, 50,
    # QEMU's own: signalfd4
    289,
}  # fmt: skip
_PR_SET_PDEATHSIG = 1

_GUEST_DENIES = {
    # mounts and roots: pivot_root, chroot, mount, umount2, swapon, swapoff, open_tree … fspick, mount_setattr
    155, 161, 165, 166, 167, 168, 428, 429, 430, 431, 432, 433, 442,
    # namespaces: unshare, setns
    272, 308,
    # the host's kernel: init_module, delete_module, finit_module, kexec_load, kexec_file_load, bpf, perf_event_open,
    # acct, reboot, syslog, iopl, ioperm, quotactl, quotactl_fd, nfsservctl, vhangup, lookup_dcookie, fanotify_init
    175, 176, 313, 246, 320, 321, 298, 163, 169, 103, 172, 173, 179, 443, 180, 153, 212, 300,
    # the host's clock: settimeofday, clock_settime, adjtimex, clock_adjtime
    164, 227, 159, 305,
    # keys: add_key, request_key, keyctl
    248, 249, 250,
    # a history of escapes: io_uring ×3, userfaultfd, vmsplice, open_by_handle_at, name_to_handle_at, modify_ldt
    425, 426, 427, 323, 278, 304, 303, 154,
    # other processes' memory, beyond what ptrace gives: process_vm_readv, _writev, process_madvise, pidfd_getfd, kcmp
    310, 311, 440, 438, 312,
    # NUMA policy and page moving: mbind, set_mempolicy, migrate_pages, move_pages
    237, 238, 256, 279,
}  # fmt: skip


def _driver(*, runs_program: bool) -> Filter:
    """With `runs_program` it and what it runs are under the one filter."""
    verdicts: dict[int, Verdict] = {number: ALLOW for number in _DRIVER_CALLS}
    verdicts[16] = one_of(1, _DRIVER_IOCTLS, ALLOW, _EPERM)
    verdicts[53] = one_of(0, (_AF_UNIX,), ALLOW, _EPERM)  # socketpair
    verdicts[56] = all_of(0, _CLONE_THREAD, _CLONE_NEW_ANY, ALLOW, _EPERM)
    verdicts[157] = one_of(0, _HARMLESS_PRCTLS, ALLOW, _EPERM)
    verdicts[435] = _ENOSYS
    if runs_program:
        verdicts |= {number: ALLOW for number in _PROGRAM_CALLS}
        verdicts[41] = one_of(0, (_AF_UNIX,), ALLOW, _EPERM)  # socket
        verdicts[56] = all_of(0, 0, _CLONE_NEW_ANY, ALLOW, _EPERM)
        verdicts[157] = one_of(0, (*_HARMLESS_PRCTLS, _PR_SET_PDEATHSIG), ALLOW, _EPERM)
    return assemble(verdicts, default=_EPERM, newest=NEWEST)


def _guest() -> Filter:
    verdicts: dict[int, Verdict] = {number: _EPERM for number in _GUEST_DENIES}
    verdicts[16] = one_of(1, _TTY_INJECTIONS, _EPERM, ALLOW)
    verdicts[41] = one_of(0, (_AF_UNIX,), ALLOW, _EPERM)  # socket
    verdicts[53] = one_of(0, (_AF_UNIX,), ALLOW, _EPERM)
    verdicts[56] = all_of(0, 0, _CLONE_NEW_ANY, ALLOW, _EPERM)
    verdicts[435] = _ENOSYS
    return assemble(verdicts, default=ALLOW, newest=NEWEST)


def filter_for(kind: JailKind) -> Filter:
    """The filter of a kind of domain. Assembled anew at each call: keep it."""
    return _guest() if kind == "guest" else _driver(runs_program=kind == "storage")
