# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory for libvirt/QEMU from pools that cost the host nothing beyond themselves.

The packages, from the bottom to the top; each imports only from those before it:

* ``runtime``: how work is run: off the event loop, within deadlines, again after a failure
* ``config``: the configuration file
* ``native``: the two C programs, the hook's client and the pre-faulting helper
* ``ipc``: the control socket between the daemon and its callers
* ``host``: what the kernel shows of the host
* ``domain_xml``: libvirt's domain XML, read and rewritten
* ``hypervisor``: libvirt and QEMU
* ``pools``: pools of guest memory, their segments and files; ``pools.backends``: the kinds of memory;
  ``pools.elastic``: pools that take memory for domains, and give it back
* ``allocation``: which domain has which memory; ``allocation.prezero``: memory zeroed ahead
* ``domains``: one domain's memory, through all events of its life; ``domains.elastic``: that of elastic pools;
  ``domains.parked``: that of guests without a QEMU
* ``monitoring``: alerts, metrics, the report; ``monitoring.checks``: ``virt-dmem check``;
  ``monitoring.watch``: what others change on the host
* ``daemon``: ``virt-dmemd``
* ``page_service``: ``virt-dmem-pages``, which takes huge pages for elastic pools
* ``cli``: ``virt-dmem``; ``cli.commands``: its verbs

Beside them stand only modules that all of them may use, such as ``errors`` and ``units``.
"""

__version__ = "0.2.0"
