# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver with the real helper; shell scripts stand in only for helpers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.errors import PrefaultFailed
from virt_dmem.native.build import build
from virt_dmem.pools import prefault as driver
from virt_dmem.pools.prefault import Progress, prefault

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("virt-dmem-prefault", tmp_path_factory.mktemp("helper") / "virt-dmem-prefault")


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virt-dmem-test-") as directory:
        yield Path(directory)


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def script(path: Path, text: str) -> Path:
    """A helper that does what no real one should."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def helpers_on(path: Path) -> list[int]:
    """Processes that have ``path`` as an argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def all_steps(path: Path, **more: Any) -> list[Progress]:
    async def collect() -> list[Progress]:
        arguments = {"size_bytes": path.stat().st_size, "page_size": PAGE} | more
        return [step async for step in prefault(path, **arguments)]

    return asyncio.run(collect())


def test_progress_ends_with_all_of_it(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", GIB)
    steps = all_steps(path, helper=helper, threads=1)
    assert steps[-1] == Progress(GIB, GIB)
    assert len(steps) > 1
    assert [step.done_bytes for step in steps] == sorted({step.done_bytes for step in steps})
    assert path.stat().st_blocks * 512 == GIB


def test_every_mode_policy_and_node_reaches_the_helper(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    all_steps(path, helper=helper, policy="bind", nodes=(0,), threads=2)
    path.write_bytes(b"secret" + bytes(MIB - 6))
    with pytest.raises(PrefaultFailed) as refused:
        all_steps(path, helper=helper, mode="verify-zero")
    assert refused.value.message == f"{path} is not completely zero: the byte at offset 0 is not zero."
    assert all_steps(path, helper=helper, mode="scrub") == [Progress(MIB, MIB)]
    assert all_steps(path, helper=helper, mode="verify-zero") == [Progress(MIB, MIB)]
    assert all_steps(path, helper=helper, mode="zero") == [Progress(MIB, MIB)]


def test_gentle_work_is_done_in_the_background(shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    for gentle in (True, False):
        with pytest.raises(PrefaultFailed) as refused:
            all_steps(path, helper=script(shm / "helper", 'echo "told: $*"; exit 7'), gentle=gentle)
        assert ("--background" in refused.value.message) == gentle
        assert "--mode populate" in refused.value.message


def test_a_node_that_is_not_there_is_an_error_with_a_sentence(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    with pytest.raises(PrefaultFailed) as refused:
        all_steps(path, helper=helper, policy="bind", nodes=(0, 999))
    assert refused.value.message == (
        f"The memory of {path} was not populated: node 999 has no memory or may not be used here."
    )
    assert refused.value.hint


def test_a_file_with_any_name_can_be_populated(helper: Path, shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shm)
    for name in ["--size", "-", "a b\n\"c'", os.fsdecode(b"\xff\xfe")]:
        path = sparse(Path(name), MIB)
        assert all_steps(path, helper=helper) == [Progress(MIB, MIB)]
        assert path.stat().st_blocks * 512 == MIB


@pytest.mark.parametrize("how", ["missing", "not executable"])
def test_a_helper_that_cannot_be_run_is_an_error_that_says_how_to_get_it(shm: Path, how: str) -> None:
    path = sparse(shm / "extent", MIB)
    program = shm / "helper"
    if how == "not executable":
        program.touch(mode=0o644)
    with pytest.raises(PrefaultFailed) as refused:
        all_steps(path, helper=program)
    assert f"The helper {program} cannot be executed" in refused.value.message
    assert "virt_dmem.native.build" in refused.value.hint


def test_what_the_helper_says_on_standard_error_is_in_the_error(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", MIB)
    with pytest.raises(PrefaultFailed, match=r"exited with status 2: virt-dmem-prefault: --size is a multiple"):
        all_steps(path, helper=helper, size_bytes=PAGE + 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kill -9 $$", "the helper was killed by SIGKILL"),
        ("exit 0", "the helper exited with status 0: no message"),
        ("echo '{\"event\":'; echo oops >&2; exit 7", 'the helper exited with status 7: {"event": oops'),
        (
            'echo \'{"event":"stopped","signal":15,"done":0,"total":9}\'; exit 143',
            "the helper was killed by SIGTERM",
        ),
    ],
)
def test_a_helper_that_ends_without_being_done_is_an_error(shm: Path, text: str, says: str) -> None:
    path = sparse(shm / "extent", MIB)
    with pytest.raises(PrefaultFailed) as refused:
        all_steps(path, helper=script(shm / "helper", text))
    assert refused.value.message.endswith(f"{says}.")


def test_the_helper_gets_a_clean_environment_no_input_and_a_session_of_its_own(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    path = sparse(shm / "extent", MIB)
    text = (
        f"cat /proc/self/environ >{shm}/env; readlink /proc/self/fd/0 >{shm}/stdin; cat /proc/$$/stat >{shm}/stat"
    )
    with pytest.raises(PrefaultFailed):
        all_steps(path, helper=script(shm / "helper", f"PATH=/bin:/usr/bin; {text}"))
    assert "SECRET" not in (shm / "env").read_text()
    assert (shm / "stdin").read_text() == "/dev/null\n"
    pid, _, _, _, group, session, *_ = (shm / "stat").read_text().split()
    assert pid == group == session


def test_cancelling_ends_the_helper_before_it_returns(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)

    async def cancel() -> float:
        begun = asyncio.Event()

        async def run() -> None:
            async for _ in prefault(path, size_bytes=8 * GIB, page_size=PAGE, threads=1, helper=helper):
                begun.set()

        task = asyncio.create_task(run())
        await asyncio.wait_for(begun.wait(), 60)
        assert helpers_on(path)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    assert asyncio.run(cancel()) < 30
    assert helpers_on(path) == []
    assert path.stat().st_blocks * 512 < 8 * GIB


@pytest.mark.parametrize("passes", range(8))
def test_when_all_tasks_are_cancelled_just_as_it_starts_it_ends(helper: Path, shm: Path, passes: int) -> None:
    path = sparse(shm / "extent", 8 * GIB)

    async def cancel() -> None:
        task = asyncio.create_task(anext(prefault(path, size_bytes=8 * GIB, page_size=PAGE, helper=helper)))
        for _ in range(passes):
            await asyncio.sleep(0)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await task

    asyncio.run(cancel())
    assert helpers_on(path) == []


def test_closing_the_generator_ends_the_helper(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)

    async def close() -> None:
        steps = prefault(path, size_bytes=8 * GIB, page_size=PAGE, threads=1, helper=helper)
        async with contextlib.aclosing(steps):
            async for _ in steps:
                break
        assert helpers_on(path) == []

    asyncio.run(close())


@pytest.mark.parametrize("cancels", [1, 2])
def test_a_helper_that_will_not_end_is_killed(shm: Path, monkeypatch: pytest.MonkeyPatch, cancels: int) -> None:
    monkeypatch.setattr(driver, "_GRACE_SECONDS", 0.3 if cancels == 1 else 60)
    path = sparse(shm / "extent", MIB)
    text = """trap '' TERM; echo '{"event":"progress","done":0,"total":1}'; while :; do /bin/sleep 0.05; done"""
    stubborn = script(shm / "helper", text)

    async def cancel() -> None:
        begun = asyncio.Event()

        async def run() -> None:
            async for _ in prefault(path, size_bytes=MIB, page_size=PAGE, helper=stubborn):
                begun.set()

        task = asyncio.create_task(run())
        await asyncio.wait_for(begun.wait(), 60)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)

    asyncio.run(cancel())
    deadline = time.monotonic() + 60
    while helpers_on(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert helpers_on(path) == []


def test_a_helper_in_the_background_that_is_stopped_runs_at_the_usual_priority_from_then_on(shm: Path) -> None:
    """A domain waits for it. The script lowers its priority as the real helper does.

    With what the unit allows, or where root may not raise its limits with all that root has.
    """
    path = sparse(shm / "extent", MIB)
    stand_in = script(
        shm / "helper",
        f"""
cd {shm}
said() {{ nice; cat /proc/$$/autogroup 2>&1 || true; }}
trap 'said >after; exit 1' TERM
renice -n 19 -p $$ >/dev/null
[ ! -e /proc/self/autogroup ] || echo 19 >/proc/$$/autogroup
said >before
sleep 0.2 # the kernel takes few changes of autogroups in a row
echo '{{"event":"progress","done":0,"total":1}}'
while :; do sleep 0.05; done""",
    )
    program = f"""
import asyncio, contextlib, pathlib
from virt_dmem.pools.prefault import prefault

async def main():
    steps = prefault(pathlib.Path({str(path)!r}), size_bytes={MIB}, page_size=4096, gentle=True,
                     helper=pathlib.Path({str(stand_in)!r}))
    async with contextlib.aclosing(steps):
        async for _ in steps:
            break

asyncio.run(main())
"""
    unit = (REPOSITORY / "systemd/virt-dmemd.service").read_text()
    (nice,) = re.findall(r"^LimitNICE=\+(\d+)$", unit, re.MULTILINE)
    (capabilities,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    bounding = ",".join(["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in capabilities.split())])
    limit = ["prlimit", f"--nice={20 - int(nice)}"]
    limited = [*limit, "setpriv", "--bounding-set", bounding, "--inh-caps", "-all"]
    if subprocess.run([*limit, "true"], check=False, capture_output=True).returncode:
        limited = []
    subprocess.run([*limited, sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
    before, after = ((shm / name).read_text().split() for name in ("before", "after"))
    assert (before[0], after[0]) == ("19", "0")
    if before[1].startswith("/autogroup-"):
        assert (before[-1], after[-1]) == ("19", "0")


def test_when_the_driver_is_killed_the_helper_ends(helper: Path, shm: Path) -> None:
    path = sparse(shm / "extent", 8 * GIB)
    program = f"""
import asyncio, pathlib
from virt_dmem.pools.prefault import prefault

async def main():
    async for _ in prefault(pathlib.Path({str(path)!r}), size_bytes={8 * GIB}, page_size=4096, threads=1,
                            helper=pathlib.Path({str(helper)!r})):
        print("begun", flush=True)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert len(helpers_on(path)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 60
    while helpers_on(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert helpers_on(path) == []
    assert path.stat().st_blocks * 512 < 8 * GIB
