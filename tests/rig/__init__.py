# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a private libvirtd in a private mount namespace, for tests, benchmarks and the demo.

Nothing of the host's libvirt is read, changed or disturbed::

    enter_private_namespace()              # this process and every child of it, once, at the start
    with PrivateLibvirt() as libvirtd, Daemon() as daemon:
        libvirtd.define(domain_xml("guest", memory="64MiB"))
        libvirtd.virsh("start", "guest", "--paused")
"""

from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, guest_image
from tests.rig.namespace import enter_private_namespace, missing_for_rig
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for

__all__ = [
    "enter_private_namespace",
    "missing_for_rig",
    "PrivateLibvirt",
    "HOOK",
    "Daemon",
    "domain_xml",
    "guest_image",
    "GuestImage",
    "RigError",
    "wait_for",
    "tail",
]
