# SPDX-License-Identifier: GPL-2.0-or-later
"""The C helper on real tmpfs and hugetlbfs, as it is shipped and built with sanitizers."""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.hugepages_lock import hugepages_lock
from tests.rig.repository import REPOSITORY
from virt_dmem.native.build import build

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
HUGE = 2 * MIB
BUILDS = {
    "plain": ["-Werror"],
    "sanitized": ["-Werror", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@dataclass(frozen=True)
class Outcome:
    status: int
    events: list[dict[str, Any]]
    stderr: str

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


class Helper:
    """One build of the helper."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def arguments(
        self, path: Path | str, mode: str = "populate", size: int = 0, page: int = PAGE, **more: Any
    ) -> list[str]:
        options = {"mode": mode, "size": size or Path(path).stat().st_size, "page-size": page}
        options |= {name.replace("_", "-"): value for name, value in more.items()}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [str(self.program), *words, str(path)]

    def run(
        self, path: Path | str, mode: str = "populate", size: int = 0, page: int = PAGE, **more: Any
    ) -> Outcome:
        return self.run_raw(self.arguments(path, mode, size, page, **more)[1:])

    def run_raw(self, words: list[str], before: Callable[[], object] | None = None) -> Outcome:
        done = subprocess.run(
            [str(self.program), *words], capture_output=True, text=True, timeout=300, check=False, preexec_fn=before
        )
        assert "Sanitizer" not in done.stderr, done.stderr
        assert "runtime error" not in done.stderr, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return Outcome(done.returncode, events, done.stderr)

    @contextmanager
    def started(self, path: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A helper that has begun: its first progress event has been read."""
        command = self.arguments(path, progress_ms=1, **more)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "progress"
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="module", params=BUILDS)
def helper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helper:
    return Helper(
        build("virt-dmem-prefault", tmp_path_factory.mktemp("helper") / request.param, flags=BUILDS[request.param])
    )


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virt-dmem-test-") as directory:
        yield Path(directory)


@contextmanager
def mounted(fstype: str, options: str) -> Iterator[Path]:
    """A file system in a mount namespace that ends with this block, seen through /proc/PID/root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    with tempfile.TemporaryDirectory() as directory:
        script = 'mount -t "$1" -o "$2" none "$3" && echo mounted && read -r line'
        command = [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            fstype,
            options,
            directory,
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "mounted\n"
            try:
                yield Path(f"/proc/{holder.pid}/root{directory}")
            finally:
                assert holder.stdin is not None
                holder.stdin.close()


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """``count`` more huge pages of 2 MiB than there were; freed at the end, whatever others took meanwhile."""
    knob = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if os.geteuid() != 0 or not knob.exists():
        pytest.skip("needs root and huge pages of 2 MiB")
    before = int(knob.read_text())
    knob.write_text(str(before + count))
    taken = int(knob.read_text()) - before
    try:
        if taken < count:
            pytest.skip(f"needs {count} huge pages, the host had memory for {taken}")
        yield
    finally:
        knob.write_text(str(int(knob.read_text()) - taken))


@pytest.fixture(scope="module")
def huge_pool() -> Iterator[Path]:
    """A hugetlbfs of 16 pages."""
    with ExitStack() as stack:
        stack.enter_context(hugepages_lock())
        stack.enter_context(huge_pages(16))
        yield stack.enter_context(mounted("hugetlbfs", f"pagesize=2M,size={16 * HUGE},min_size={16 * HUGE}"))


def sparse(path: Path, size: int, *data: tuple[int, bytes]) -> Path:
    """Make ``path`` a file of holes, but for ``data``: (offset, bytes)."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data:
            file.seek(offset)
            file.write(content)
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def content(path: Path) -> bytes:
    return path.read_bytes()


# populate


@pytest.mark.parametrize("method", ["auto", "madvise", "touch"])
@pytest.mark.parametrize("threads", [1, 2])
def test_populate_allocates_every_page_and_keeps_what_was_there(
    helper: Helper, shm: Path, method: str, threads: int
) -> None:
    noise = random.Random(method).randbytes(3 * PAGE)
    size = 129 * MIB
    path = sparse(shm / "extent", size, (5 * PAGE, noise), (size - PAGE, noise[:PAGE]))
    done = helper.run(path, method=method, threads=threads)
    assert (done.status, done.last["event"], done.last["bytes"]) == (0, "done", size)
    assert done.last["method"] == ("touch" if method == "touch" else "madvise")
    assert done.last["threads"] == threads
    assert allocated(path) == size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[5 * PAGE : 8 * PAGE] == noise
        assert memory[size - PAGE :] == noise[:PAGE]
        assert not any(memory[: 5 * PAGE])


def test_only_the_size_asked_for_is_populated(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 4 * MIB)
    assert helper.run(path, size=MIB).status == 0
    assert allocated(path) == MIB


def test_only_the_range_asked_for_is_populated(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * MIB)
    done = helper.run(path, offset=3 * MIB, size=2 * MIB, policy="bind", nodes=0)
    assert (done.status, done.last["bytes"]) == (0, 2 * MIB)
    assert allocated(path) == 2 * MIB
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 3 * MIB
        assert os.lseek(file.fileno(), 3 * MIB, os.SEEK_HOLE) == 5 * MIB


def test_zero_scrub_and_verify_zero_keep_to_the_range(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * MIB, (0, b"a"), (3 * MIB, b"b"), (4 * MIB, b"c"), (7 * MIB, b"d"))
    bad = helper.run(path, "verify-zero", offset=MIB, size=4 * MIB)
    assert (bad.last["errno"], bad.last["offset"]) == ("EUCLEAN", 3 * MIB)
    assert helper.run(path, "scrub", offset=MIB, size=3 * MIB).status == 0
    bad = helper.run(path, "verify-zero", offset=MIB, size=4 * MIB)
    assert (bad.last["errno"], bad.last["offset"]) == ("EUCLEAN", 4 * MIB)
    assert bad.last["message"] == f"the byte at offset {4 * MIB} is not zero"
    assert helper.run(path, "zero", offset=4 * MIB, size=2 * MIB).status == 0
    assert helper.run(path, "verify-zero", offset=MIB, size=5 * MIB).status == 0
    assert (content(path)[0], content(path)[7 * MIB]) == (ord("a"), ord("d"))
    assert allocated(path) == 2 * MIB + 3 * PAGE


@pytest.mark.parametrize(("method", "offset"), [("madvise", 6 * MIB), ("touch", 6 * MIB), ("touch", 9 * MIB)])
def test_an_error_names_the_place_in_the_file_not_in_the_range(helper: Helper, method: str, offset: int) -> None:
    with mounted("tmpfs", "size=4M") as pool:
        path = sparse(pool / "extent", 16 * MIB)
        done = helper.run(path, offset=offset, size=6 * MIB, method=method)
        assert done.last["offset"] == offset + 4 * MIB
        assert done.last["message"].endswith(f"at offset {offset + 4 * MIB} of {offset + 6 * MIB} bytes")


def test_a_range_beyond_the_end_is_refused(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 4 * MIB)
    done = helper.run(path, offset=2 * MIB, size=4 * MIB)
    assert (done.status, done.last["message"]) == (
        1,
        f"the file has {4 * MIB} bytes, less than the {6 * MIB} asked for",
    )
    assert helper.run(path, offset=100, size=PAGE).status == 2
    assert helper.run(path, offset=2**63 - PAGE, size=PAGE).status == 2
    assert allocated(path) == 0


def test_shares_of_huge_pages_are_populated_one_after_another(helper: Helper, huge_pool: Path) -> None:
    path = sparse(huge_pool / "extent", 8 * HUGE)
    for at, pages in ((0, 5), (5, 3)):
        done = helper.run(path, offset=at * HUGE, size=pages * HUGE, page=HUGE, policy="bind", nodes=0)
        assert (done.status, done.last["bytes"]) == (0, pages * HUGE)
        assert allocated(path) == (at + pages) * HUGE
    path.unlink()


def test_a_page_size_above_that_of_the_file_system_still_populates_every_page(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 4 * MIB)
    assert helper.run(path, page=HUGE, method="touch").status == 0
    assert allocated(path) == 4 * MIB


def test_a_file_whose_name_looks_like_an_option_or_holds_quotes_is_just_a_file(helper: Helper, shm: Path) -> None:
    for name in ["--mode", 'a"b\\c\n']:
        path = sparse(shm / name, PAGE)
        words = helper.arguments(path)[1:-1]
        assert helper.run_raw([*words, "--", str(path)]).status == 0
        assert allocated(path) == PAGE


@pytest.mark.parametrize("mode", ["populate", "zero"])
@pytest.mark.parametrize("method", ["madvise", "touch"])
def test_a_full_pool_is_an_error_that_says_how_far_it_got(helper: Helper, mode: str, method: str) -> None:
    with mounted("tmpfs", "size=8M") as pool:
        path = sparse(pool / "extent", 16 * MIB)
        done = helper.run(path, mode, method=method)
        assert done.status == 1
        assert done.last == {
            "event": "error",
            "errno": "ENOMEM",
            "message": f"out of memory in the pool at offset {8 * MIB} of {16 * MIB} bytes",
            "offset": 8 * MIB,
        }
        assert allocated(path) == 8 * MIB


# zero, scrub, verify-zero


def test_zero_populates_and_zeroes_all_of_it(helper: Helper, shm: Path) -> None:
    for method in ["auto", "touch"]:
        path = sparse(shm / "extent", 3 * MIB, (MIB, b"secret"))
        done = helper.run(path, "zero", method=method)
        assert (done.status, done.last["method"]) == (0, "memset")
        assert allocated(path) == 3 * MIB
        assert not any(content(path))


def test_scrub_leaves_zeroes_and_fills_no_hole(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 200 * MIB, (0, b"\1"), (70 * MIB, b"secret" * MIB), (200 * MIB - 1, b"\1"))
    before = allocated(path)
    done = helper.run(path, "scrub")
    assert (done.status, done.last["bytes"]) == (0, 200 * MIB)
    assert allocated(path) == before
    assert not any(content(path)[70 * MIB : 76 * MIB])
    assert helper.run(path, "verify-zero").status == 0


def test_scrub_of_a_file_without_holes_leaves_zeroes(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 5 * MIB, (0, random.Random(1).randbytes(5 * MIB)))
    assert helper.run(path, "scrub").status == 0
    assert not any(content(path))


def test_verify_zero_fills_no_hole_and_writes_nothing(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB, (4 * GIB, bytes(PAGE)))
    path.chmod(0o400)
    before = path.stat()
    done = helper.run(path, "verify-zero")
    assert (done.status, done.last["bytes"], done.last["method"]) == (0, 8 * GIB, "read")
    after = path.stat()
    assert (after.st_blocks, after.st_mtime_ns) == (before.st_blocks, before.st_mtime_ns)


@settings(max_examples=30)
@given(
    offsets=st.lists(st.integers(0, 400 * MIB - 1), min_size=1, max_size=4),
    threads=st.integers(1, 4),
    byte=st.integers(1, 255),
)
def test_verify_zero_names_the_first_byte_that_is_not_zero_among_holes(
    helper: Helper, offsets: list[int], threads: int, byte: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virt-dmem-test-") as directory:
        path = sparse(Path(directory) / "extent", 400 * MIB, *((offset, bytes([byte])) for offset in offsets))
        done = helper.run(path, "verify-zero", threads=threads)
    assert (done.status, done.last["errno"], done.last["offset"]) == (1, "EUCLEAN", min(offsets))
    assert done.last["message"] == f"the byte at offset {min(offsets)} is not zero"


@settings(max_examples=30)
@given(offset=st.integers(0, MIB - 1), bit=st.integers(0, 7))
def test_verify_zero_names_a_byte_in_a_file_without_holes(helper: Helper, offset: int, bit: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virt-dmem-test-") as directory:
        path = sparse(Path(directory) / "extent", MIB, (0, bytes(MIB)), (offset, bytes([1 << bit])))
        assert allocated(path) == MIB
        done = helper.run(path, "verify-zero")
        assert (done.status, done.last["offset"]) == (1, offset)
        assert helper.run(path, "scrub").status == 0
        assert not any(content(path))


def test_the_lowest_offset_is_reported_also_when_a_higher_one_is_found_first(helper: Helper, shm: Path) -> None:
    late = 64 * MIB - 1  # at the end of the first chunk; the second thread finds the first byte of the next at once
    path = sparse(shm / "extent", 128 * MIB, (0, bytes(late) + b"\1\1"))
    for _ in range(3):
        assert helper.run(path, "verify-zero", threads=2).last["offset"] == late


def test_zero_zeroes_what_lies_between_holes(helper: Helper, shm: Path) -> None:
    for at in (0, 64 * MIB, 100 * MIB, 192 * MIB - PAGE):
        path = sparse(shm / "extent", 192 * MIB, (at, b"secret" * 600))
        assert helper.run(path, "zero").status == 0
        assert allocated(path) == 192 * MIB
        assert not any(content(path))


def kernel_has_huge_pages_for_tmpfs() -> bool:
    mode = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return mode.exists() and "[deny]" not in mode.read_text()


@pytest.mark.parametrize("huge", ["advise", "within_size"])
@pytest.mark.parametrize("mode", ["populate", "zero"])
def test_memory_of_tmpfs_comes_in_huge_pages_where_it_may(helper: Helper, huge: str, mode: str) -> None:
    if not kernel_has_huge_pages_for_tmpfs():
        pytest.skip("needs a kernel with huge pages for tmpfs")
    with mounted("tmpfs", f"size=1G,huge={huge}") as pool:
        path = sparse(pool / "extent", GIB)
        with helper.started(path, mode=mode, threads=1) as process:
            process.send_signal(signal.SIGSTOP)
            smaps = Path(f"/proc/{process.pid}/smaps").read_text().split(path.name)[1]
        rss, huge_kib = (int(smaps.split(f"{name}:", 1)[1].split()[0]) for name in ("Rss", "ShmemPmdMapped"))
        assert huge_kib >= 64 * 1024
        assert huge_kib >= rss * 0.9


# hugetlbfs


@pytest.mark.needs_hugepages
def test_zero_zeroes_huge_pages_that_were_there_and_allocates_the_others(helper: Helper, huge_pool: Path) -> None:
    for there in ([], [2], [0, 3], [0, 1, 2, 3]):
        path = sparse(huge_pool / "extent", 4 * HUGE)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4 * HUGE) as memory:
            for page in there:
                memory[page * HUGE : (page + 1) * HUGE] = b"x" * HUGE
        assert allocated(path) == len(there) * HUGE
        assert helper.run(path, "zero", page=HUGE).status == 0
        assert allocated(path) == 4 * HUGE
        assert not any(content(path))
        path.unlink()


@pytest.mark.needs_hugepages
@pytest.mark.parametrize("method", ["madvise", "touch"])
def test_populate_takes_huge_pages_and_keeps_what_was_there(helper: Helper, huge_pool: Path, method: str) -> None:
    path = sparse(huge_pool / "extent", 4 * HUGE)
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4 * HUGE) as memory:
            memory[HUGE + 5 : HUGE + 8] = b"abc"
        assert allocated(path) == HUGE
        assert helper.run(path, page=HUGE, method=method, policy="bind", nodes="0").status == 0
        assert allocated(path) == 4 * HUGE
        assert content(path) == bytes(HUGE + 5) + b"abc" + bytes(3 * HUGE - 8)
    finally:
        path.unlink()


@pytest.mark.needs_hugepages
def test_scrub_and_verify_zero_take_no_huge_page(helper: Helper, huge_pool: Path) -> None:
    path = sparse(huge_pool / "extent", 40 * HUGE)  # more than the pool has
    try:
        assert helper.run(path, "verify-zero", page=HUGE).status == 0
        assert allocated(path) == 0
        with path.open("r+b") as file, mmap.mmap(file.fileno(), HUGE, offset=2 * HUGE) as memory:
            memory[77] = 1
        assert helper.run(path, "verify-zero", page=HUGE).last["offset"] == 2 * HUGE + 77
        assert helper.run(path, "scrub", page=HUGE).status == 0
        assert helper.run(path, "verify-zero", page=HUGE).status == 0
        assert allocated(path) == HUGE
    finally:
        path.unlink()


@pytest.mark.needs_hugepages
def test_a_file_of_huge_pages_without_holes_is_scrubbed_through_its_mapping(
    helper: Helper, huge_pool: Path
) -> None:
    path = sparse(huge_pool / "extent", 2 * HUGE)
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 2 * HUGE) as memory:
            memory[:] = b"x" * (2 * HUGE)
        assert helper.run(path, "verify-zero", page=HUGE).last["offset"] == 0
        assert helper.run(path, "scrub", page=HUGE).status == 0
        assert not any(content(path))
    finally:
        path.unlink()


@pytest.mark.needs_hugepages
def test_more_huge_pages_than_the_pool_has_are_refused_before_one_is_taken(helper: Helper, huge_pool: Path) -> None:
    path = sparse(huge_pool / "extent", 17 * HUGE)
    try:
        done = helper.run(path, page=HUGE)
        assert (done.status, done.last["errno"]) == (1, "ENOMEM")
        assert done.last["message"] == f"out of memory in the pool: it has not the free pages for {17 * HUGE} bytes"
        assert allocated(path) == 0
    finally:
        path.unlink()


@pytest.mark.needs_hugepages
def test_a_page_size_that_is_not_the_pools_is_refused(helper: Helper, huge_pool: Path) -> None:
    path = sparse(huge_pool / "extent", HUGE)
    try:
        for page in [PAGE, HUGE // 2]:
            done = helper.run(path, page=page)
            assert (done.status, done.last["errno"]) == (1, "EINVAL")
            assert done.last["message"] == f"the file system has pages of {HUGE} bytes, not of {page}"
    finally:
        path.unlink()


# NUMA


@pytest.mark.parametrize(
    ("policy", "shown"), [("bind", "bind:0"), ("interleave", "interleave:0"), ("preferred", "prefer:0")]
)
def test_the_numa_policy_is_in_force_while_pages_come(helper: Helper, shm: Path, policy: str, shown: str) -> None:
    path = sparse(shm / "extent", GIB)
    with helper.started(path, policy=policy, nodes="0", threads=1) as process:
        process.send_signal(signal.SIGSTOP)
        maps = Path(f"/proc/{process.pid}/numa_maps").read_text().splitlines()
    (ours,) = [line for line in maps if f"file={path}" in line]
    assert ours.split()[1].startswith(shown)
    assert " N0=" in ours


def test_populated_pages_lie_on_the_node_that_was_asked_for(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 2 * MIB)
    assert helper.run(path, policy="bind", nodes="0").status == 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[:] == bytes(2 * MIB)  # maps every page here
        (ours,) = [line for line in Path("/proc/self/numa_maps").read_text().splitlines() if f"file={path}" in line]
    assert " N0=512" in ours


@pytest.mark.parametrize("nodes", ["1023", "0,1000-1002"])
def test_a_node_that_is_not_there_is_refused_although_the_kernel_would_ignore_it(
    helper: Helper, shm: Path, nodes: str
) -> None:
    path = sparse(shm / "extent", MIB)
    done = helper.run(path, policy="bind", nodes=nodes)
    assert (done.status, done.last["errno"]) == (1, "EINVAL")
    assert "has no memory or may not be used here" in done.last["message"]
    assert allocated(path) == 0


# threads, progress, ends


@pytest.mark.parametrize(("asked", "got"), [(8, 4), (3, 3), (1, 1)])
def test_there_are_never_more_threads_than_chunks_of_64_mib(
    helper: Helper, shm: Path, asked: int, got: int
) -> None:
    path = sparse(shm / "extent", 256 * MIB)
    assert helper.run(path, "verify-zero", threads=asked).last["threads"] == got


def test_zero_threads_are_one_for_each_cpu_it_may_run_on(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 2 * GIB)
    words = helper.arguments(path, "verify-zero", threads=0)[1:]
    cpus = os.sched_getaffinity(0)
    assert helper.run_raw(words).last["threads"] == min(len(cpus), 16)
    one = {min(cpus)}
    assert helper.run_raw(words, before=lambda: os.sched_setaffinity(0, one)).last["threads"] == 1


def test_progress_rises_and_comes_no_more_often_than_asked(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 512 * MIB)
    often, seldom, never = (helper.run(path, "zero", progress_ms=ms, threads=1) for ms in (1, 100, 0))
    for outcome in (often, seldom):
        *progress, done = outcome.events
        steps = [event["done"] for event in progress]
        assert steps == sorted(set(steps))
        assert {event["total"] for event in progress} <= {512 * MIB}
        assert done["event"] == "done"
    assert len(often.events) >= 3
    assert len(seldom.events) <= seldom.last["seconds"] * 10 + 1
    assert [event["event"] for event in never.events] == ["done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", ["populate", "zero"])
def test_a_signal_stops_it_at_once_and_is_reported(
    helper: Helper, shm: Path, number: signal.Signals, mode: str
) -> None:
    path = sparse(shm / "extent", 8 * GIB)
    with helper.started(path, mode=mode) as process:
        sent = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        took = time.monotonic() - sent
    assert process.returncode == 128 + number
    assert took < 20
    last = json.loads(stdout.splitlines()[-1])
    assert (last["event"], last["signal"], last["total"]) == ("stopped", number, 8 * GIB)
    assert 0 < last["done"] < 8 * GIB
    assert stderr == b""


def test_it_stops_when_nobody_reads_its_output_any_more(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)
    with helper.started(path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert b"standard output was closed" in process.stderr.read()
    assert allocated(path) < 8 * GIB


def test_without_a_standard_output_it_does_nothing(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    done = helper.run_raw(helper.arguments(path)[1:], before=lambda: os.close(1))
    assert done.status == 1
    assert "standard output is closed" in done.stderr
    assert allocated(path) == 0


def test_a_reader_that_does_not_read_does_not_hold_up_the_work(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 256 * MIB)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b"x" * PAGE):
            pass
    os.set_blocking(writer, True)
    with subprocess.Popen(helper.arguments(path, progress_ms=1), stdout=writer) as process:
        os.close(writer)
        deadline = time.monotonic() + 60
        while allocated(path) < 256 * MIB and time.monotonic() < deadline:
            time.sleep(0.02)
        assert allocated(path) == 256 * MIB
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read().lstrip(b"x").startswith(b'{"event":"done"')
        assert process.wait(timeout=60) == 0


def test_it_ends_with_the_process_that_started_it_even_if_that_was_killed(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)
    command = helper.arguments(path, progress_ms=1)
    program = (
        "import os, subprocess, sys\n"
        "helper = subprocess.Popen([sys.argv[1], '--parent', str(os.getpid()), *sys.argv[2:]], stdout=sys.stderr)\n"
        "print(helper.pid, flush=True)\n"
        "helper.wait()\n"
    )
    reader, writer = os.pipe()  # outlives the parent: it is the signal that must end the helper, not the pipe
    parent = subprocess.Popen([sys.executable, "-c", program, *command], stdout=subprocess.PIPE, stderr=writer)
    assert parent.stdout is not None
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    try:
        assert b"progress" in os.read(reader, 4096)
        parent.kill()
        parent.wait()
        assert select.select([pidfd], [], [], 2) == ([pidfd], [], [])
    finally:
        if not select.select([pidfd], [], [], 0)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for fd in (pidfd, reader, writer):
            os.close(fd)
        parent.stdout.close()


def test_it_refuses_to_start_for_a_parent_that_is_gone(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    done = helper.run(path, parent=1 if os.getpid() != 1 else 2)
    assert done.status == 1
    assert "is not the parent" in done.stderr
    assert allocated(path) == 0


def priorities(pid: int) -> set[int]:
    """The nice values of all threads: field 19 of proc(5)'s stat."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {int(stat.rpartition(")")[2].split()[16]) for stat in stats}


def autogroup(pid: int | str) -> int | None:
    """A session's priority; None without such groups, and for a process that never had a session of its own."""
    path = Path(f"/proc/{pid}/autogroup")
    words = path.read_text().split() if path.exists() else []
    return int(words[-1]) if words else None


def sessions_have_priorities() -> bool:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            return autogroup(process.pid) is not None
        finally:
            process.kill()


@pytest.mark.parametrize("session", [True, False], ids=["own session", "our session"])
def test_in_the_background_others_come_first_and_no_other_of_its_session_pays_for_it(
    helper: Helper, shm: Path, session: bool
) -> None:
    path = sparse(shm / "extent", GIB)
    before = priorities(os.getpid()), autogroup("self")
    command = [helper.program, "--background", *helper.arguments(path, progress_ms=1, threads=2)[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=session) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            assert priorities(process.pid) == {19}
            assert autogroup(process.pid) == (19 if session and sessions_have_priorities() else before[1])
        finally:
            process.kill()
    assert (priorities(os.getpid()), autogroup("self")) == before


def test_in_the_foreground_its_priority_is_that_of_its_parent(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", GIB)
    with helper.started(path, threads=2) as process:
        process.send_signal(signal.SIGSTOP)
        assert priorities(process.pid) == {os.nice(0)}


def test_guest_memory_is_left_out_of_core_dumps(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", GIB)
    with helper.started(path, threads=1) as process:
        process.send_signal(signal.SIGSTOP)
        ours = Path(f"/proc/{process.pid}/smaps").read_text().split(str(path))[1]
    flags = next(line for line in ours.splitlines() if line.startswith("VmFlags:"))
    assert "dd" in flags.split()


# refusals


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--mode is missing"),
        (["--mode", "fill"], "--mode does not know 'fill'"),
        (["--size", "-1"], "--size takes a number"),
        (["--size", " 1"], "--size takes a number"),
        (["--size", "1M"], "--size takes a number"),
        (["--size", ""], "--size takes a number"),
        (["--size", "99999999999999999999"], "--size takes a number"),
        (["--size", "9223372036854775808"], "--size takes a number"),
        (["--threads", "1025"], "--threads takes a number from 0 to 1024"),
        (["--progress-ms", "x"], "--progress-ms takes a number"),
        (["--method", "magic"], "--method does not know 'magic'"),
        (["--policy", "strict"], "--policy does not know 'strict'"),
        *(
            (["--nodes", nodes], "--nodes takes a list")
            for nodes in ["", "x", "1-", "-1", "2-1", "0,", "1024", "0;1"]
        ),
        (["--frobnicate"], "unrecognized option '--frobnicate'"),
        (["--mode", "zero"], "one FILE is needed, 0 were given"),
        (["--mode", "zero", "a", "b"], "one FILE is needed, 2 were given"),
        (["--mode", "zero", "f"], "--page-size is a power of two"),
        (["--mode", "zero", "--page-size", "6144", "--size", "6144", "f"], "--page-size is a power of two"),
        (["--mode", "zero", "--page-size", "4096", "f"], "--size is a multiple of the page size"),
        (["--mode", "zero", "--page-size", "4096", "--size", "4097", "f"], "--size is a multiple of the page size"),
        (
            ["--mode", "zero", "--page-size", "4096", "--size", "4096", "--policy", "bind", "f"],
            "--policy bind goes with --nodes",
        ),
        (
            ["--mode", "zero", "--page-size", "4096", "--size", "4096", "--nodes", "0", "f"],
            "--policy none goes without --nodes",
        ),
    ],
)
def test_wrong_usage_is_told_in_a_sentence_with_status_2(helper: Helper, words: list[str], says: str) -> None:
    done = helper.run_raw(words)
    assert (done.status, done.events) == (2, [])
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_no_regular_file_is_refused(helper: Helper, shm: Path) -> None:
    target = sparse(shm / "target", MIB)
    (shm / "link").symlink_to(target)
    os.mkfifo(shm / "fifo")
    refusals = {
        shm / "link": ("ELOOP", "the file is a symbolic link and was not followed"),
        shm / "fifo": ("EINVAL", "the file is a FIFO, not a regular file"),
        shm: ("EISDIR", "the file cannot be opened: Is a directory"),
        Path("/dev/zero"): ("EINVAL", "the file is a device, not a regular file"),
        shm / "missing": ("ENOENT", "the file cannot be opened: No such file or directory"),
    }
    for path, (errno_name, message) in refusals.items():
        done = helper.run(path, size=MIB)
        assert (done.status, done.last["errno"], done.last["message"]) == (1, errno_name, message)
    assert allocated(target) == 0


def test_a_file_smaller_than_asked_for_is_refused(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    done = helper.run(path, size=2 * MIB)
    assert done.status == 1
    assert done.last["message"] == f"the file has {MIB} bytes, less than the {2 * MIB} asked for"
    assert allocated(path) == 0


def test_a_file_that_is_cut_short_meanwhile_is_an_error_not_a_crash(helper: Helper, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)
    for method in ["madvise", "touch"]:
        os.truncate(path, 8 * GIB)
        with helper.started(path, method=method) as process:
            os.truncate(path, 0)
            stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert json.loads(stdout.splitlines()[-1])["event"] == "error"


def test_help_and_version_are_told_on_standard_output(helper: Helper) -> None:
    told = {
        word: subprocess.run([helper.program, word], capture_output=True, text=True, check=True).stdout
        for word in ("--help", "--version")
    }
    version = (REPOSITORY / "virt_dmem/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
    assert told["--version"] == f"virt-dmem-prefault {version}\n"
    assert all(word in told["--help"] for word in ("verify-zero", "--progress-ms", "Exit status"))
