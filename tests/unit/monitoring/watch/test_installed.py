# SPDX-License-Identifier: GPL-2.0-or-later
"""What was installed for libvirt, AppArmor and systemd is compared with what the installer recorded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.installed import HOOK, InstalledFiles

CLIENT = Path("/usr/bin/virt-dmem-hook")
RULE = Path("/etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem")
UNIT = Path("/usr/lib/systemd/system/virt-dmemd.service")


def put(root: Path, path: Path, text: str = "as installed", mode: int = 0o755) -> Path:
    file = root / str(path)[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A host on which everything is as installed."""
    lines = []
    for path, mode in ((HOOK, 0o755), (CLIENT, 0o755), (RULE, 0o644), (UNIT, 0o644)):
        put(tmp_path, path, mode=mode)
        lines += [f"F {path}", f"H {hashlib.sha256(b'as installed').hexdigest()} {path}"]
    file = tmp_path / "manifest"
    file.write_text("\n".join(lines) + "\n")
    return file


def messages(look: InstalledFiles, root: Path) -> list[str]:
    return [one.message for one in look(Sight(Config(), [], root))]


def test_a_host_as_installed_has_nothing(tmp_path: Path, manifest: Path) -> None:
    assert messages(InstalledFiles(manifest), tmp_path) == []


@pytest.mark.parametrize(
    ("path", "meaning"),
    [(HOOK, "no memory from pools"), (CLIENT, "cannot start"), (RULE, "QEMU may not"), (UNIT, "in force at")],
)
def test_what_is_gone_or_changed_is_named_with_what_it_means(
    tmp_path: Path, manifest: Path, path: Path, meaning: str
) -> None:
    look = InstalledFiles(manifest)
    file = tmp_path / str(path)[1:]
    file.unlink()
    (message,) = messages(look, tmp_path)
    assert message.startswith(f"{path} is gone: ")
    assert meaning in message
    put(tmp_path, path, "something else", 0o755)
    (message,) = messages(look, tmp_path)
    assert message.startswith(f"{path} is not as it was installed: ")
    put(tmp_path, path)
    assert messages(look, tmp_path) == []


def test_a_hook_that_nobody_may_execute_is_as_good_as_none(tmp_path: Path, manifest: Path) -> None:
    put(tmp_path, HOOK, mode=0o644)
    (message,) = messages(InstalledFiles(manifest), tmp_path)
    assert "cannot be executed any more" in message


def test_the_line_that_an_old_libvirt_needs_is_watched_too(tmp_path: Path, manifest: Path) -> None:
    line = "include if exists <abstractions/libvirt-qemu.d/virt-dmem>"
    local = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")
    with manifest.open("a") as file:
        file.write(f"L {local} {line}\n")
    look = InstalledFiles(manifest)
    assert messages(look, tmp_path) == [
        f"{local} has no line '{line}' any more: QEMU may not reach the memory of its domain at its next start."
    ]
    put(tmp_path, local, f"# mine\n{line}\n", 0o644)
    assert messages(look, tmp_path) == []


def test_another_version_may_be_installed_meanwhile(tmp_path: Path, manifest: Path) -> None:
    look = InstalledFiles(manifest)
    assert messages(look, tmp_path) == []
    put(tmp_path, HOOK, "as of now")
    old = hashlib.sha256(b"as installed").hexdigest()
    text = manifest.read_text().replace(f"{old} {HOOK}", f"{hashlib.sha256(b'as of now').hexdigest()} {HOOK}")
    manifest.unlink()
    manifest.write_text(text)
    assert messages(look, tmp_path) == []


def test_where_nothing_was_installed_the_hook_is_compared_with_what_it_was(tmp_path: Path) -> None:
    look = InstalledFiles(tmp_path / "none")
    assert messages(look, tmp_path) == []
    file = put(tmp_path, HOOK)
    assert messages(look, tmp_path) == []
    file.unlink()
    assert "is gone" in messages(look, tmp_path)[0]
    put(tmp_path, HOOK, "another")
    assert "was changed since virt-dmemd started" in messages(look, tmp_path)[0]


@pytest.mark.parametrize("directory", ["etc/systemd/system", "run/systemd/system"])
def test_a_unit_that_is_masked_or_replaced_is_named(tmp_path: Path, manifest: Path, directory: str) -> None:
    look = InstalledFiles(manifest)
    other = tmp_path / directory / UNIT.name
    other.parent.mkdir(parents=True)
    other.symlink_to("/dev/null")
    (masked,) = look(Sight(Config(), [], tmp_path))
    assert f"is masked by /{directory}/{UNIT.name}" in masked.message
    assert "systemctl unmask virt-dmemd.service" in masked.hint
    other.unlink()
    other.write_text("[Service]\nExecStart=/bin/true\n")
    (replaced,) = messages(look, tmp_path)
    assert f"is not used, but /{directory}/{UNIT.name}" in replaced
    other.unlink()
    other.symlink_to(tmp_path / str(UNIT)[1:])  # an alias of it
    assert messages(look, tmp_path) == []
