# SPDX-License-Identifier: GPL-2.0-or-later
"""Run processes of another user, such as QEMU's, that do whatever that user may do to obstruct virt-dmemd."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "USER",
    "a_leaseholder",
    "a_process_that_cannot_be_read",
    "a_swapper",
    "a_writer_that_never_ends",
    "hostile_names",
]

USER = 64999
"""The uid of nobody."""
_WRITE, _READ, _CHANGE_OF_MEMORY = 1, 17, (9, 10, 11, 12, 149)
"""write, pread64; mmap, mprotect, munmap, brk, mlock, of which Python may need one first (asm/unistd_64.h)."""

_SWAP = """
    import ctypes, os, sys
    RENAME_EXCHANGE, AT_FDCWD = 2, -100
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    one, other = map(os.fsencode, sys.argv[1:])
    print("ready", flush=True)
    while not renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE):
        pass
    sys.exit(os.strerror(ctypes.get_errno()))
"""

_LEASE = """
    import fcntl, os, signal, sys
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(sys.argv[1], os.O_RDONLY if sys.argv[2] == "read" else os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK if sys.argv[2] == "read" else fcntl.F_WRLCK)
    print("ready", flush=True)
    sys.stdin.read()
"""

_SILENT_FUSE = """
    import ctypes, json, os, select, struct, sys
    mount_point, user, program, more = sys.argv[1:]
    user, libc = int(user), ctypes.CDLL(None, use_errno=True)
    def must(failed):
        if failed:
            sys.exit(os.strerror(ctypes.get_errno()))
    must(libc.unshare(0x00020000))  # CLONE_NEWNS
    must(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    options = f"fd={fuse},rootmode=40000,user_id={user},group_id={user}".encode()
    must(libc.mount(b"fuse", mount_point.encode(), b"fuse", 6, options))  # MS_NOSUID | MS_NODEV
    def attributes(node, mode):
        return struct.pack("<6Q10I", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, user, user, 0, 4096, 0)
    root, file = attributes(1, 0o40755), attributes(2, 0o100644)
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: else it may loop in the kernel for ever once FUSE is gone
        os.execv(sys.executable, [sys.executable, "-I", "-c", program, mount_point, *json.loads(more)])
    while True:
        select.select([fuse], [], [])
        try:
            request = os.read(fuse, 1 << 20)
        except BlockingIOError:  # it was taken back
            continue
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode in (2, 15, 36, 42):  # FUSE_FORGET, FUSE_READ, FUSE_INTERRUPT, FUSE_BATCH_FORGET
            continue
        body = {
            26: struct.pack("<4I2HIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 0, 0, 0),
            1: struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + file,
            3: struct.pack("<Q2I", 3600, 0, 0) + (root if node == 1 else file),
            14: struct.pack("<QII", 1, 0, 0),
        }.get(opcode, b"")
        os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
"""

# It reads, through /proc/self/mem, a page that it mapped from a FUSE file, which is never answered: the kernel
# holds the lock of its address space meanwhile. Writers of that lock wait, and then readers too.
_UNREADABLE = """
    import ctypes, mmap, os, sys, threading
    page = mmap.mmap(os.open(f"{sys.argv[1]}/file", os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    address = next(int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.endswith("/file\\n"))
    memory, libc = os.open("/proc/self/mem", os.O_RDONLY), ctypes.CDLL(None)
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    threading.Thread(target=lambda: os.pread(memory, 1, address), daemon=True).start()
    os.write(1, f"{os.getpid()}\\n".encode())
    os.read(0, 1)
    libc.mlock(address, 1)
    os._exit(0)
"""

# It extends a file, if told to, and writes to it from a page that it mapped from a FUSE file, which is never
# answered: the kernel holds the lock of the file's inode meanwhile.
_ENDLESS_WRITE = """
    import mmap, os, sys, threading
    size = int(sys.argv[2])
    page = mmap.mmap(os.open(f"{sys.argv[1]}/file", os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    files = [os.open(path, os.O_RDWR) for path in sys.argv[3:]]
    os.write(1, b"ready\\n")
    os.read(0, 1)
    for file in files:
        if size:
            os.ftruncate(file, size)
        threading.Thread(target=os.write, args=(file, page), daemon=True).start()
    os.write(1, f"{os.getpid()}\\n".encode())
    os.read(0, 1)
    os._exit(0)
"""


@contextmanager
def _running(program: str, *args: str | Path, user: int | None = USER) -> Iterator[subprocess.Popen[bytes]]:
    command = ["/usr/bin/python3", "-I", "-c", textwrap.dedent(program), *map(str, args)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, user=user, group=user, extra_groups=[]) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def _tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def _wait_until_blocked(pid: int, *system_calls: int, threads: int = 1) -> None:
    """Wait until threads of a process wait in the kernel, which ``syscall`` in proc(5) says of no others."""

    def blocked() -> bool:
        calls = [file.read_text().split()[0] for file in Path(f"/proc/{pid}/task").glob("*/syscall")]
        return sum(call in map(str, system_calls) for call in calls) >= threads

    wait_for(f"process {pid} to be blocked", blocked)


@contextmanager
def a_swapper(one: Path, other: Path, *, user: int = USER) -> Iterator[None]:
    """Exchange two names in a tight loop for as long as the context lasts."""
    with _running(_SWAP, one, other, user=user) as process:
        _wait(process)
        yield
        assert process.poll() is None, "it failed"


@contextmanager
def a_leaseholder(path: Path, kind: str, *, user: int = USER) -> Iterator[int]:
    """Hold a lease ("read" or "write") on that user's file by a process that keeps it; yield its PID."""
    with _running(_LEASE, path, kind, user=user) as process:
        _wait(process)
        yield process.pid


@contextmanager
def a_process_that_cannot_be_read(mount_point: Path, *more: str) -> Iterator[int]:
    """Run a process whose ``/proc/PID/cmdline`` cannot be read while it exists; yield its PID.

    ``more``: additional arguments. Its mount is in a separate namespace, as it can be made in a user namespace.
    """
    unreadable = textwrap.dedent(_UNREADABLE)
    with _running(_SILENT_FUSE, mount_point, str(USER), unreadable, json.dumps(more), user=None) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        _wait_until_blocked(pid, _READ)
        _tell(process)
        _wait_until_blocked(pid, *_CHANGE_OF_MEMORY)
        yield pid


@contextmanager
def a_writer_that_never_ends(
    mount_point: Path, *paths: Path, size_bytes: int = 0, owner: int = USER
) -> Iterator[None]:
    """Extend files of that user and then write to them endlessly, so that any process that changes them blocks.

    ``owner``: the owner of the files once the user has them open.
    """
    more = json.dumps([str(size_bytes), *map(str, paths)])
    with _running(
        _SILENT_FUSE, mount_point, str(USER), textwrap.dedent(_ENDLESS_WRITE), more, user=None
    ) as process:
        _wait(process)
        for path in paths:
            os.chown(path, owner, owner)  # before the write starts: chown would block as well
        _tell(process)
        assert process.stdout is not None
        _wait_until_blocked(int(process.stdout.readline()), _WRITE, threads=len(paths))
        yield


def hostile_names(directory: Path) -> list[Path]:
    """Create and return unexpected entries in a directory of links: none of them is a link into a pool."""
    links = {
        "loop": "loop",
        "new\nline\x1b[31m\u202e": "/nowhere",
        os.fsdecode(b"\xff\xfe"): os.fsdecode(b"/nowhere/\xff\xfe"),
        "n" * 255: "/" + "m" * 300,
        "long": "/" + "d/" * 2000,
        "self": ".",
    }
    (directory / "a-directory").mkdir()
    os.mkfifo(directory / "fifo")
    (directory / "file").touch()
    for name, target in links.items():
        (directory / name).symlink_to(target)
    return [directory / name for name in ("a-directory", "fifo", "file", *links)]
