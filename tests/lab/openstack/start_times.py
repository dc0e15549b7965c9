# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure how long a server takes from ``server create`` to a running guest, by where its memory comes from.

On one host, alternately: from a pool by adoption, and from a file on the disk, nova's file_backed_memory as it is;
then from huge pages that nova itself gives, for which it is configured anew. ``make fleet`` runs it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator

import pytest

from tests.lab.host import PATIENCE, Host
from tests.lab.openstack.cloud import (
    MIB,
    Cloud,
    assert_in_pool,
    assert_pool_is_whole,
    memory_inventory,
    openstack,
    pids_of,
    write_rule,
)
from tests.lab.openstack.conftest import BACKEND
from tests.rig.processes import wait_for

HAS_HUGE_PAGES = BACKEND == "hugetlbfs"
"""Only the container with such a pool may take the huge pages of this machine."""
SERVER_MIB = 1024
ROUNDS = 5
POOL, FILE, HUGE = "a pool, by adoption", "nova's files on a disk", "nova's huge pages"
_CLIENT = """
import json, sys, time, openstack
cloud = openstack.connect()
image = cloud.image.find_image("guest").id
flavors = {flavor.name: flavor.id for flavor in cloud.compute.flavors()}
for line in sys.stdin:
    word, name = line.split()
    if word == "delete":
        cloud.compute.delete_server(name)
        answer = None
    else:
        began = time.time()
        made = cloud.compute.create_server(name="timed", flavor_id=flavors[name], image_id=image, networks="none")
        answer = [made.id, began]
    print(json.dumps(answer), flush=True)
"""
_UP = (
    "until grep -q 'guest up' /var/lib/nova/instances/{}/console.log 2>/dev/null; do sleep 0.05; done; date +%s.%N"
)
_LOG = "/var/log/nova/nova-compute.log"


@pytest.fixture(scope="module")
def timed(cloud: Cloud, host: Host) -> Iterator[Host]:
    """Provide the host, with a larger pool and as many huge pages beside it."""
    assert_pool_is_whole(host)
    host.run(f"virt-dmem pool resize guests --size {SERVER_MIB}M", timeout=300)
    flavor = f"flavor create --ram {SERVER_MIB} --disk 0 --vcpus 1"
    openstack(cloud, f"{flavor} timed")
    if HAS_HUGE_PAGES:
        openstack(cloud, f"{flavor} --property hw:mem_page_size=large timed-huge")
        pages = "/proc/sys/vm/nr_hugepages"
        host.run(f"echo $(($(cat {pages}) + {SERVER_MIB // 2})) >{pages}")
    yield host


def configure(cloud: Cloud, host: Host, file_backed_mib: int) -> None:
    """Have nova give memory of files, that much in all, or of huge pages; wait until the scheduler counts it."""
    before = memory_inventory(cloud)["total"]
    host.run(f"sed -i 's/^file_backed_memory = .*/file_backed_memory = {file_backed_mib}/' /etc/nova/nova.conf")
    host.run("systemctl restart nova-compute", timeout=300)
    wait_for("placement to know", lambda: memory_inventory(cloud)["total"] != before, timeout=180 * PATIENCE)


def assert_kind(host: Host, uuid: str, kind: str) -> None:
    (pid,) = pids_of(host, uuid)
    if kind == POOL:
        assert_in_pool(host, uuid, SERVER_MIB)
        return
    maps = host.run(f"cat /proc/{pid}/maps").stdout
    place = {HUGE: "/dev/hugepages/libvirt/qemu", FILE: "/var/lib/libvirt/qemu/ram"}[kind]
    mapped = re.findall(rf"^(\w+)-(\w+) .* {place}", maps, re.MULTILINE)
    assert sum(int(end, 16) - int(start, 16) for start, end in mapped) == SERVER_MIB * MIB


@pytest.mark.skipif(BACKEND == "dmemfs", reason="a machine with KVM has no huge pages beside its pool")
@pytest.mark.timeout(3600)
def test_the_time_from_server_create_to_a_guest_that_runs(cloud: Cloud, timed: Host) -> None:
    client = cloud.begin(["bash", "-c", f". /root/openstackrc && exec python3 -c '{_CLIENT}'"])
    assert client.stdin is not None
    assert client.stdout is not None

    def ask(line: str) -> list[str]:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{line}\n".encode())
        client.stdin.flush()
        found: list[str] = json.loads(client.stdout.readline())
        return found

    runs: dict[str, list[float]] = {kind: [] for kind in (POOL, FILE, *([HUGE] if HAS_HUGE_PAGES else []))}
    spawned: dict[str, list[float]] = {kind: [] for kind in runs}

    def start(kind: str) -> None:
        uuid, began = ask(f"create {'timed-huge' if kind == HUGE else 'timed'}")
        ended = float(timed.run(_UP.format(uuid), timeout=180).stdout)
        assert_kind(timed, uuid, kind)
        took = timed.wait_for(f"grep {uuid} {_LOG} | grep -o 'Took .* seconds to spawn'").split()[1]
        runs[kind].append(ended - float(began))
        spawned[kind].append(float(took))
        ask(f"delete {uuid}")
        timed.wait_for(f"! test -e /var/lib/nova/instances/{uuid}", timeout=180)

    configure(cloud, timed, SERVER_MIB)
    for _ in range(ROUNDS + 1):  # the first warms up
        write_rule(timed)
        start(POOL)
        timed.run("rm /etc/virt-dmem/conf.d/nova.toml && systemctl restart virt-dmemd")
        start(FILE)
    if HAS_HUGE_PAGES:
        configure(cloud, timed, 0)
        for _ in range(ROUNDS + 1):
            start(HUGE)
    for kind in runs:
        for what, of in (("to a running guest", runs), ("nova's spawn", spawned)):
            found = sorted(of[kind][1:])
            print(
                f"{kind}, {what}: median {statistics.median(found):.2f} s, {found[0]:.2f} to {found[-1]:.2f} s,"
                f" {len(found)} rounds"
            )
