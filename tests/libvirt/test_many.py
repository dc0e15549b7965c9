# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and stop many domains at once: what does not fit is rejected with the numbers; nothing is left over."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError
from virt_dmem.domain_xml import rewrite

DOMAINS = 50
AT_ONCE = 8
FIT = 10


def test_fifty_domains_by_eight_virsh_on_a_pool_for_ten(libvirtd: PrivateLibvirt, daemon: Daemon) -> None:
    virt_dmem("pool", "create", "tight", "--backend", "tmpfs", "--size", f"{FIT * 64}M")
    names = [f"many{number}" for number in range(DOMAINS)]
    for name in names:
        libvirtd.define(rewrite.apply(domain_xml(name).encode(), pool="tight").decode())

    refusals: list[str] = []
    slowest_list = 0.0
    done = threading.Event()

    def watch() -> None:
        """List domains continuously: a deadlock with libvirt would show here first."""
        nonlocal slowest_list
        while not done.is_set():
            began = time.monotonic()
            libvirtd.virsh("list", "--all", timeout=300)
            slowest_list = max(slowest_list, time.monotonic() - began)
            (pool,) = virt_dmem_json("pool", "list")["pools"]
            assert pool["reserved_bytes"] <= pool["capacity_bytes"]

    def start(name: str) -> bool:
        try:
            libvirtd.virsh("start", "--paused", name)
        except RigError as error:
            refusals.append(str(error))
            return False
        return True

    def start_and_stop(name: str) -> None:
        if start(name):
            libvirtd.virsh("destroy", name)

    with ThreadPoolExecutor(1) as watcher, ThreadPoolExecutor(AT_ONCE) as virsh:
        watching = watcher.submit(watch)
        try:
            fit = list(virsh.map(start, names))
            assert fit.count(True) == FIT, "those that fit, fit"
            for refusal in refusals:
                assert re.search(r"asks for 64 MiB.*0 B is free|64 MiB.*free", refusal), refusal
                assert re.search(r"many\d+ holds the most, 64 MiB", refusal)
            # from full to empty, while other starts are attempted
            running = [name for name, fits in zip(names, fit, strict=True) if fits]
            others = [name for name in names if name not in running]
            list(virsh.map(lambda act: act(), [
                action
                for stopped, started in zip(running, others[: len(running)], strict=True)
                for action in (partial(libvirtd.virsh, "destroy", stopped), partial(start_and_stop, started))
            ]))  # fmt: skip
        finally:
            done.set()
        watching.result(timeout=300)

    print(f"{len(refusals)} refused; the slowest list took {slowest_list:.1f} s")
    assert virt_dmem_json("list")["domains"] == []
    (pool,) = virt_dmem_json("pool", "list")["pools"]
    assert pool["reserved_bytes"] == 0
    assert list(Path("/run/virt-dmem/pools/tight").glob("libvirt-*")) == []
    virt_dmem("pool", "destroy", "tight")
