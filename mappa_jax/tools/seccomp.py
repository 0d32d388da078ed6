"""The wall between a program and the kernel: which system calls it may make.

Everything is allowed but what a program of numbers and files never needs and what has
led out of sandboxes before. What is refused fails with EPERM, as for want of a right.
"""

from __future__ import annotations

import errno
import functools
import tempfile

# linux/socket.h, asm/ioctls.h, linux/sched.h
AF_UNIX = 1
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000)
NAMESPACES += (0x10000000, 0x20000000, 0x40000000)

REFUSED = (
    # looking into other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    *("process_madvise", "process_mrelease"),
    # keys of the kernel
    *("keyctl", "add_key", "request_key"),
    # other roots and namespaces
    *("mount", "umount2", "move_mount", "open_tree", "mount_setattr", "pivot_root"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "chroot", "unshare", "setns"),
    *("open_by_handle_at", "name_to_handle_at", "fanotify_init"),
    # large surfaces of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter"),
    *("io_uring_register", "vmsplice", "memfd_secret", "lookup_dcookie"),
    # memory that belongs to no process, and so to no count
    *("shmget", "msgget", "semget", "memfd_create"),
    # the machine itself
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    *("reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "vhangup"),
    *("sethostname", "setdomainname", "personality", "nfsservctl", "iopl", "ioperm"),
)


@functools.cache
def filter_program() -> bytes:
    """The filter as an array of struct sock_filter, for this machine's architecture.

    Calls of another architecture (32-bit ones on a 64-bit kernel) kill the process.

    Raises:
      ImportError, OSError: pyseccomp or the libseccomp under it is not there.
    """
    import pyseccomp as seccomp

    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refuse = seccomp.ERRNO(errno.EPERM)
    for name in REFUSED:
        # Negative, but -1 only where this libseccomp does not know the name.
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) != -1:
            rules.add_rule(refuse, name)
    for flag in NAMESPACES:
        flags = seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag)
        rules.add_rule(refuse, "clone", flags)
    # Its flags lie in memory, which a filter cannot read; libraries then use clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for request in (TIOCSTI, TIOCLINUX):
        low = seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)
        rules.add_rule(refuse, "ioctl", low)
    for call in ("socket", "socketpair"):
        other = seccomp.Arg(0, seccomp.NE, AF_UNIX)
        rules.add_rule(seccomp.ERRNO(errno.EAFNOSUPPORT), call, other)
    # Limits of other processes: those that watch it may be its own user's.
    other = seccomp.Arg(0, seccomp.NE, 0)
    rules.add_rule(refuse, "prlimit64", other)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
