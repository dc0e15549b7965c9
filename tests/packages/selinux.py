# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the packages on a Debian 12 host where SELinux is enforcing, with libvirt's SELinux driver; one story.

Debian 12 has a policy to load, Debian 13 has none. ``make test-selinux`` runs it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.lab import guests
from tests.lab.conftest import HOST
from tests.lab.host import PATIENCE
from tests.lab.machine import Machine
from tests.packages.machine_disk import REPOSITORY_ARCHIVE, machine_image
from tests.rig.documents import lines
from tests.rig.repository import REPOSITORY

pytestmark = [pytest.mark.needs_lab, pytest.mark.timeout(900 * PATIENCE)]

PACKAGES = ["selinux-policy-default", "selinux-policy-dev", "policycoreutils", "selinux-utils", "semodule-utils"]
POLICY = sorted((REPOSITORY / "packaging/selinux").glob("virt_dmem.*"))
DENIED = "dmesg | grep -E 'avc: +denied'"
MIB = 1 << 20
LIBVIRT = """
policy_module(lab_libvirt, 1.0)
gen_require(`
	attribute virt_domain;
	type virtd_t, virtlogd_t, virsh_t, initrc_t, device_t, sysfs_t, initrc_runtime_t, sysctl_kernel_t;
	type systemd_logind_t, systemd_machined_t;
	class bpf { map_create map_read map_write prog_load prog_run };
	class anon_inode { create map read write };
	class dbus send_msg;
')
allow virtd_t self:capability2 { bpf perfmon };
allow virtd_t self:bpf { map_create map_read map_write prog_load prog_run };
allow virtd_t device_t:filesystem unmount;
allow virtd_t initrc_runtime_t:file { open read lock };
allow virtd_t { systemd_logind_t systemd_machined_t }:dbus send_msg;
allow { systemd_logind_t systemd_machined_t } virtd_t:dbus send_msg;
allow { virtd_t virsh_t initrc_t } self:process execmem;
allow virt_domain self:anon_inode { create map read write };
allow { virt_domain virtlogd_t } sysfs_t:file read_file_perms;
allow virtlogd_t sysfs_t:dir list_dir_perms;
allow virtlogd_t self:process getsched;
allow virtlogd_t sysctl_kernel_t:dir search_dir_perms;
allow virtlogd_t sysctl_kernel_t:file read_file_perms;
"""
"""What Debian 12's policy lacks for its own libvirt and QEMU, whether virt-dmem is there or not."""


def root_script() -> str:
    """Return the script that loads our policy module into the policy of a root, and labels all files there."""
    files = "".join(
        f"echo {base64.b64encode(file.read_bytes()).decode()} | base64 -d >{file.name}\n" for file in POLICY
    )
    files += f"echo {base64.b64encode(LIBVIRT.encode()).decode()} | base64 -d >lab_libvirt.te\n"
    return f"""
exec 2>&1
mkdir /root/policy
cd /root/policy
{files}
mount -t proc proc /proc
make -f /usr/share/selinux/devel/Makefile virt_dmem.pp lab_libvirt.pp
# Debian 12's module of spamassassin has a rule twice, for which semodule refuses to link anything
semodule -n -d spamassassin -i virt_dmem.pp lab_libvirt.pp
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config
setfiles -m -F -e /proc /etc/selinux/default/contexts/files/file_contexts /
umount /proc
"""


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    image = machine_image("bookworm", tmp_path_factory.mktemp("disk"), PACKAGES, root_script())
    with Machine(image, node_gib=(3,), cmdline="security=selinux", name="selinux") as machine:
        request.node.stash[HOST] = machine
        guests.provide_guest(machine)
        machine.run(f"tar -xPf {REPOSITORY_ARCHIVE}")
        machine.run("restorecon -R /var/lib/libvirt /var/log/libvirt")
        yield machine
    image.disk.unlink()


@pytest.fixture(scope="module")
def uuid(host: Machine) -> str:
    return guests.define(host, "first", cells=("128MiB",), boots=True)


def domain_of(host: Machine, process: str) -> str:
    """Return the SELinux domain of the process that ``pgrep -f`` finds."""
    return host.run(f"cat /proc/$(pgrep -o -f -- '{process}')/attr/current").stdout.strip("\0\n")


def label_of(host: Machine, path: str) -> str:
    return host.run(f"stat -c %C {path}").stdout.strip()


def denied(host: Machine) -> str:
    """Return what was denied to us, to QEMU and to libvirt's hook."""
    ours = 'virt_dmem|svirt_t|comm="(50-virt-dmem|virt-dmem)'
    return host.run(f"{DENIED} | grep -E '{ours}'", check=False).stdout


def test_the_host_enforces_and_libvirt_confines_its_guests(host: Machine) -> None:
    assert host.run("getenforce").stdout == "Enforcing\n"
    assert ":virtd_t:" in domain_of(host, "sbin/libvirtd")
    assert "<model>selinux</model>" in host.run("virsh capabilities").stdout


def test_it_is_installed_as_everywhere_and_check_lacks_nothing_but_a_pool(host: Machine) -> None:
    commands = [line for line in lines(REPOSITORY / "README.md") if line.split()[0] in ("cp", "apt")]
    script = " && ".join(command.replace("trixie", "bookworm") for command in commands)
    host.run(f"cd {REPOSITORY} && export DEBIAN_FRONTEND=noninteractive && {script}", timeout=600)
    assert ":virt_dmemd_t:" in domain_of(host, "sbin/virt-dmemd")
    for socket in ("sock", "sock-ro", "sock-pages"):
        assert ":virt_dmem_runtime_t:" in label_of(host, f"/run/virt-dmem/{socket}")
    assert guests.complaints(host) == {"pools": "There is no pool yet."}


def test_a_guests_memory_has_the_label_of_its_images(host: Machine, uuid: str) -> None:
    host.run("virt-dmem pool create guests --size 256M --page-size 2M")
    host.run("virsh -q start first")
    guests.boot(host, "first")
    assert guests.memory_of(host, uuid) == {"ram-node0": (2 * MIB, {0})}
    profile = domain_of(host, f"[-]uuid {uuid}")
    assert ":svirt_t:" in profile
    image = host.run("virsh dumpxml first | sed -n 's/.*<imagelabel>\\(.*s[0-9].*\\)<.*/\\1/p'").stdout.strip()
    assert ":svirt_image_t:" in image
    assert label_of(host, f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0") == image


def test_another_guest_is_refused_that_memory(host: Machine, uuid: str) -> None:
    """With the categories of another domain, as root, so that no file mode refuses it."""
    extent = f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0"
    qemu = "/usr/bin/qemu-system-x86_64 -machine none -display none -S -daemonize -pidfile /dev/null"
    qemu += f" -object memory-backend-file,id=m,size=128M,share=on,mem-path={extent}"
    said = host.run(f"exec 2>&1; runcon system_u:system_r:svirt_t:s0:c1022,c1023 {qemu}", check=False)
    assert said.status
    assert "Permission denied" in said.stdout


def test_an_elastic_pool_works_in_the_same_domain(host: Machine) -> None:
    host.run("virt-dmem pool create more --elastic --max 128M --keep-free 256M --linger 0")
    guests.define(host, "second", cells=("64MiB",))
    host.run("virt-dmem apply second --pool more && virsh -q start --paused second")
    assert ":virt_dmemd_t:" in domain_of(host, "lib/virt-dmem/pages")
    host.run("virsh -q destroy second && virt-dmem pool destroy more --yes && virsh -q undefine second")


def test_nothing_of_that_was_denied(host: Machine) -> None:
    host.run("virsh -q destroy first")
    wrong = [line for line in denied(host).splitlines() if "c1022,c1023" not in line]
    assert wrong == []
