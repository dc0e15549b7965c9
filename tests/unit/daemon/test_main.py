# SPDX-License-Identifier: GPL-2.0-or-later
"""How virt-dmemd shuts down, and what it logs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from virt_dmem.config.schema import AdoptRule, Config, DaemonConfig
from virt_dmem.daemon import main
from virt_dmem.daemon.main import shut_down
from virt_dmem.errors import ConfigError, DaemonUnreachable
from virt_dmem.ipc.client import Client
from virt_dmem.pools.lock import locked
from virt_dmem.runtime.aio import cancel_and_wait


def test_tasks_are_cancelled_and_one_that_does_not_end_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rolled_back, released = asyncio.Event(), asyncio.Event()

        async def interrupted() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                rolled_back.set()

        async def stubborn() -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

        begun = [asyncio.create_task(interrupted()), asyncio.create_task(stubborn())]
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await shut_down(cancel_and_wait(begun[:1]), cancel_and_wait(begun[1:]), asyncio.sleep(0), seconds=0.5)
        assert rolled_back.is_set()
        assert [task.done() for task in begun] == [True, False]
        released.set()
        await begun[1]

    asyncio.run(story())
    (said,) = [record.message for record in caplog.records if "timed out" in record.message]
    assert "stubborn" in said


@in_own_mount_namespace
def test_the_configured_level_decides_what_is_logged(tmp_path: Path) -> None:
    for level, logged in (("info", True), ("error", False)):
        config = tmp_path / f"{level}.toml"
        config.write_text(
            f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\nlog_level = "{level}"\n'
            '[libvirt]\nuri = "test:///default"\n'
        )
        arguments = [sys.executable, "-m", "virt_dmem.daemon.main", "--config", str(config)]
        with subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                with suppress(DaemonUnreachable), Client(tmp_path / "run/sock") as daemon:
                    daemon.call("ListPools")
                    break
            process.terminate()
            said = process.communicate(timeout=120)[1]
        assert ("serving 0 pools" in said) is logged, said
        (tmp_path / "run/sock").unlink(missing_ok=True)


def test_half_written_files_of_killed_processes_are_removed_unless_one_is_being_written(tmp_path: Path) -> None:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path), run_dir=str(tmp_path)))
    kept = [tmp_path / name for name in ("adopt", "applied/1", "pools/p.json", "pools/.lock")]
    left = [tmp_path / name for name in (".adopt.new", "applied/.1.new", "pools/.p.new")]
    main.remove_unfinished_files(config)
    for file in (*kept, *left):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    with locked(config):  # a command changes a pool
        main.remove_unfinished_files(config)
    assert [file for file in left if file.exists()] == left[2:]
    main.remove_unfinished_files(config)
    assert [file for file in left if file.exists()] == []
    assert all(file.exists() for file in kept)


def test_rules_are_known_to_the_hook_before_anything_can_connect_or_logged_if_they_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(
        daemon=DaemonConfig(state_dir=str(tmp_path), run_dir=str(tmp_path)), adopt=(AdoptRule(domain="lab-*"),)
    )
    marks = tmp_path / "adopt"
    found = []

    def sockets(_config: Config) -> None:
        found.append(marks.read_text() if marks.is_file() else "")
        raise ConfigError("The test ends here.", hint="")

    monkeypatch.setattr(main, "ControlSockets", sockets)
    with pytest.raises(ConfigError):
        asyncio.run(main.serve(config))
    marks.unlink()
    marks.mkdir()
    with pytest.raises(ConfigError):
        asyncio.run(main.serve(config))
    assert found == ["<name>lab-\n", ""]
    assert "cannot be written for the hook" in caplog.text
