"""The system calls that walls are made of, which Python's standard library lacks.

Every function raises OSError with the call's name where the kernel refuses.
"""

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
APART = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
# The same numbers on every architecture (they are younger than the common table).
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
# linux/landlock.h: rights on files by the version of the interface that brought them,
# as bits of one mask.
_LANDLOCK_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_NET_BITS, _SCOPE_BITS = 3, 3  # bind and connect TCP; abstract sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(name, result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags):
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source, target, kind=None, flags=0, data=None):
    args = [None if x is None else x.encode() for x in (source, target, kind, data)]
    result = _libc.mount(*args[:3], ctypes.c_ulong(flags), args[3])
    _checked(f"mount {target}", result)


def set_host_name(name):
    _checked("sethostname", _libc.sethostname(name.encode(), len(name)))


def drop_bounding_set():
    """No program that is run from now on can gain a capability. Needs CAP_SETPCAP."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        result = _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        _checked("prctl(PR_CAPBSET_DROP)", result)


def drop_capabilities():
    """Gives up every capability, and the right to gain any by running a program."""
    result = _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _checked("prctl(PR_CAP_AMBIENT)", result)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked("capset", _libc.capset(header, bytes(24)))
    _checked("prctl", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # A process that has changed its user hides its own /proc from itself otherwise.
    _checked("prctl", _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def filter_system_calls(program):
    """Installs a seccomp filter, for this process and all that it starts.

    Args:
      program: bytes, an array of struct sock_filter.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    count = len(program) // 8
    header = struct.pack("HxxxxxxP", count, ctypes.addressof(instructions))
    result = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)
    _checked("seccomp", result)


def landlock_version():
    """The version of Landlock's interface, 0 where the kernel has none."""
    return max(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1), 0)


def landlock(writable, version):
    """Confines this process: it may read and execute anything that is mounted, write
    below `writable` only, and neither connect nor signal out of its own domain.

    Args:
      writable: folders.
      version: from `landlock_version`, above 0.
    """
    bits = _LANDLOCK_FILE_BITS[min(version, max(_LANDLOCK_FILE_BITS))]
    files = (1 << bits) - 1
    handled = struct.pack(
        "QQQ",
        files,
        _NET_BITS if version >= 4 else 0,
        _SCOPE_BITS if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _libc.syscall(_LANDLOCK_CREATE_RULESET, handled, size, 0)
    _checked("landlock_create_ruleset", rules)
    read = _EXECUTE | _READ_FILE | _READ_DIR
    for path, rights in [("/", read), *((path, files) for path in writable)]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights & files, place)
        result = _libc.syscall(_LANDLOCK_ADD_RULE, rules, 1, rule, 0)
        os.close(place)
        _checked(f"landlock_add_rule {path}", result)
    _checked("landlock_restrict_self", _libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0))
    os.close(rules)
