# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the Ansible role on booted hosts, as docs/guide/ansible.md shows it; one story per release, in this order."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.container import Container
from tests.packages.host_root import APT_REPOSITORY, PACKAGES, host_root
from tests.rig.documents import lines
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import CONSOLES
from tests.rig.repository import REPOSITORY

pytestmark = pytest.mark.needs_lab

RELEASES = os.environ.get("RELEASE", "bookworm trixie").split()
PROGRAMS = REPOSITORY / ".cache/ansible/bin"
GUIDE = REPOSITORY / "docs/guide/ansible.md"
DROP_IN = "/etc/virt-dmem/conf.d/ansible.toml"
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Played:
    """What one run of the playbook did."""

    status: int
    said: str

    @property
    def changed(self) -> list[str]:
        """The tasks and handlers that changed something, or would, in their order."""
        found: list[str] = []
        name = ""
        for line in self.said.splitlines():
            if match := re.match(r"(?:TASK|RUNNING HANDLER) \[virt_dmem : (.*)\] \*", line):
                name = match[1]
            elif line.startswith("changed:"):
                found.append(name)
        return list(dict.fromkeys(found))


class Controller:
    """A directory with an inventory of one host, a container, on which the playbook is run."""

    def __init__(self, directory: Path, container: Container) -> None:
        self.directory, self.container = directory, container
        self.variables: dict[str, Any] = {}
        (directory / "packaging").symlink_to(REPOSITORY / "packaging")
        (directory / "hosts").write_text("[hypervisors]\nhost1 ansible_connection=container ansible_user=root\n")
        for name in ("group_vars", "host_vars"):
            (directory / name).mkdir()
        self.reach()

    def reach(self) -> None:
        """Connect to the container as it runs now."""
        file = self.directory / "host_vars/host1.yml"
        file.write_text(yaml.safe_dump({"container_enter": self.container.entering([])}))

    def bring_repository(self) -> None:
        """Copy the packages' repository to the same place there, in a directory that may be emptied at boot."""
        packed = subprocess.run(["tar", "-cP", APT_REPOSITORY], capture_output=True, check=True).stdout
        self.container.run(["/usr/bin/tar", "-xP"], stdin=packed)

    def boot_again(self) -> None:
        self.container.shut_down()
        self.container.start()
        self.reach()
        self.bring_repository()

    def play(self, *, check_mode: bool = False, fails: bool = False) -> Played:
        """Run the command that the guide shows, with these variables."""
        (self.directory / "group_vars/hypervisors.yml").write_text(yaml.safe_dump(self.variables))
        command = next(line for line in lines(GUIDE) if ("--check" in line) == check_mode)
        ended = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.directory, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        played = Played(ended.returncode, f"{ended.stdout}{ended.stderr}")
        print(command, *re.findall("host1 +: .*", played.said), played.changed)
        assert bool(played.status) == fails, played.said
        return played

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).parent / "connection_plugins"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
        }

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a script on the host itself."""
        return self.container.run(f"exec 2>&1; {script}", check=check).stdout

    def json(self, command: str) -> Any:
        return json.loads(self.container.run(f"{command} --json").stdout)

    def pool(self, name: str = "guests") -> dict[str, Any]:
        (pool,) = [pool for pool in self.json("virt-dmem pool list")["pools"] if pool["name"] == name]
        return dict(pool)


def shown_variables() -> dict[str, Any]:
    """Return the variables that the guide shows."""
    block = re.search(r"^```yaml\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block
    return dict(yaml.safe_load(block[1]))


def bare_host(release: str, directory: Path) -> Iterator[Controller]:
    """Provide a host without virt-dmem and with a domain."""
    if not PROGRAMS.exists():
        pytest.fail("There is no Ansible yet: make ansible")
    with Container(host_root(release)) as container:
        controller = Controller(directory, container)
        controller.run(f"systemctl start libvirtd.service && mkdir -p {CONSOLES}")
        container.write("/tmp/domain.xml", domain_xml("my-guest", kind="qemu"))
        controller.run("virsh -q define /tmp/domain.xml")
        yield controller


@pytest.fixture(scope="module", params=RELEASES)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    for controller in bare_host(request.param, tmp_path_factory.mktemp("controller")):
        controller.bring_repository()
        shutil.copy(APT_REPOSITORY / "virt-dmem.asc", controller.directory)
        controller.variables = shown_variables() | {"virt_dmem_repository": f"file:{APT_REPOSITORY}"}
        controller.variables["virt_dmem_pools"][0] |= {"size": "256M", "backend": "tmpfs"}
        yield controller


def test_check_mode_changes_nothing_on_a_bare_host(host: Controller) -> None:
    assert host.play(check_mode=True).changed == ["Add the repository"]
    assert host.run("ls /etc/apt/sources.list.d /etc/virt-dmem /usr/bin/virt-dmem 2>/dev/null", check=False) in (
        "", "/etc/apt/sources.list.d:\n",
    )  # fmt: skip


def test_the_first_run_does_all(host: Controller) -> None:
    assert host.play().changed == [
        "Add the repository", "Install from a repository", "Write the configuration", "Restart virt-dmemd",
        "Create pools", "Have systemd restore pools at each boot", "Apply domains",
    ]  # fmt: skip
    pool = host.pool()
    assert (pool["name"], pool["backend"], pool["capacity_bytes"]) == ("guests", "tmpfs", 256 * MIB)
    assert pool["on_boot"] is True
    (domain,) = host.json("virt-dmem list --applied")["domains"]
    assert (domain["name"], domain["pool"]) == ("my-guest", "guests")
    assert DROP_IN in host.run("virt-dmem config show --origin | grep 'prefault.ready = \"recent\"'")


@pytest.mark.parametrize("check_mode", [False, True])
def test_another_run_changes_nothing(host: Controller, check_mode: bool) -> None:
    assert host.play(check_mode=check_mode).changed == []


def test_a_guest_starts_from_the_pool(host: Controller) -> None:
    host.run("virsh -q start my-guest")
    (domain,) = host.json("virt-dmem list")["domains"]
    assert (domain["name"], domain["reserved_bytes"]) == ("my-guest", 64 * MIB)


def test_a_pool_is_resized_under_its_guest_and_the_daemon_restarted_with_other_settings(host: Controller) -> None:
    guest, daemon = host.run("pgrep -f -- '-name guest=my-guest'"), host.run("pgrep -f sbin/virt-dmemd")
    host.variables["virt_dmem_pools"][0]["size"] = "384M"
    host.variables["virt_dmem_config"]["daemon"] = {"log_level": "debug"}
    expected = ["Write the configuration", "Restart virt-dmemd", "Resize pools"]
    assert host.play(check_mode=True).changed == expected
    host.variables["virt_dmem_pools"].append({"name": "more", "size": "64M", "backend": "tmpfs"})
    assert "Create pools" in host.play(check_mode=True).changed
    host.variables["virt_dmem_pools"].pop()
    assert host.pool()["capacity_bytes"] == 256 * MIB
    assert host.play().changed == expected
    assert host.pool()["capacity_bytes"] == 384 * MIB
    assert host.run("pgrep -f -- '-name guest=my-guest'") == guest
    assert host.run("pgrep -f sbin/virt-dmemd") != daemon
    assert host.play().changed == []


def test_what_a_guest_holds_is_not_taken_from_it(host: Controller) -> None:
    host.variables["virt_dmem_pools"][0]["size"] = "32M"
    assert "hold" in host.play(fails=True).said
    assert host.pool()["capacity_bytes"] == 384 * MIB
    host.variables["virt_dmem_pools"][0]["size"] = "384M"


def test_a_key_that_does_not_exist_is_refused_before_it_is_written(host: Controller) -> None:
    before = host.run(f"cat {DROP_IN}")
    host.variables["virt_dmem_config"]["daemon"]["log_levle"] = "debug"
    assert "log_level" in host.play(fails=True).said
    assert host.run(f"cat {DROP_IN}") == before
    del host.variables["virt_dmem_config"]["daemon"]["log_levle"]


def test_after_a_boot_the_pool_is_there_and_there_is_nothing_to_do(host: Controller) -> None:
    host.boot_again()
    assert host.pool()["capacity_bytes"] == 384 * MIB
    host.run("systemctl start libvirtd.service")
    assert host.play().changed == []
    host.run("virsh -q start my-guest")


def test_a_pool_that_is_not_restored_at_boot_is_mounted_by_a_run(host: Controller) -> None:
    host.variables["virt_dmem_pools"][0]["on_boot"] = False
    assert host.play().changed == ["Have systemd restore pools at each boot"]
    host.boot_again()
    host.run("systemctl start libvirtd.service")
    assert host.pool()["capacity_bytes"] == 0
    assert host.play().changed == ["Have systemd restore pools at each boot"]
    assert host.pool()["capacity_bytes"] == 384 * MIB
    assert host.play().changed == []


def test_an_elastic_pool_is_made_once(host: Controller) -> None:
    elastic = {"name": "elastic", "elastic": True, "max": "64M", "keep_free": "256M", "linger": "5m", "hvo": False}
    host.variables["virt_dmem_pools"].append(elastic)
    expected = ["Create pools", "Have systemd restore pools at each boot"]
    assert host.play(check_mode=True).changed == expected
    assert host.play().changed == expected
    pool = host.pool("elastic")
    assert (pool["capacity_bytes"], pool["elastic"]["max_bytes"], pool["on_boot"]) == (0, 64 * MIB, True)
    for check_mode in (False, True):
        assert host.play(check_mode=check_mode).changed == []


@pytest.mark.parametrize("release", RELEASES)
def test_a_deb_file_can_be_installed_instead(release: str, tmp_path: Path) -> None:
    (deb,) = (PACKAGES / release).glob("virt-dmem_*.deb")
    for host in bare_host(release, tmp_path):
        host.variables = {"virt_dmem_debs": [str(deb)]}
        expected = ["Make a directory for .deb files", "Copy the .deb files"]
        assert host.play(check_mode=True).changed == expected
        assert host.play().changed == [
            *expected, "Install the .deb files", "Write the configuration", "Restart virt-dmemd",
        ]  # fmt: skip
        assert host.play().changed == []
        assert host.json("virt-dmem pool list")["pools"] == []
