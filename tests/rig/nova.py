# SPDX-License-Identifier: GPL-2.0-or-later
"""Write what OpenStack's nova puts into the XML of its domains; a stand-in for nova itself."""

from __future__ import annotations

__all__ = ["FILE_BACKED", "RULE", "metadata"]

FILE_BACKED = "<source type='file'/><access mode='shared'/><allocation mode='immediate'/><discard/>"
"""The content of ``<memoryBacking>`` with ``[libvirt] file_backed_memory``."""
RULE = """
[[adopt]]
rule = "nova"
metadata = "http://openstack.org/xmlns/libvirt/nova/*"
flavor = "dmem.*"
pool = "POOL"
"""


def metadata(flavor: str = "dmem.small", *, name: str = "web", specs: str = "", version: str = "1.1") -> str:
    """Return the element in ``<metadata>``, as nova 32.0 writes it."""
    return f"""
<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/{version}">
  <nova:package version="32.0.0"/>
  <nova:name>{name}</nova:name>
  <nova:creationTime>2026-07-19 08:43:41</nova:creationTime>
  <nova:flavor name="{flavor}" id="3">
    <nova:memory>64</nova:memory>
    <nova:disk>0</nova:disk>
    <nova:swap>0</nova:swap>
    <nova:ephemeral>0</nova:ephemeral>
    <nova:vcpus>1</nova:vcpus>
    <nova:extraSpecs>{specs}</nova:extraSpecs>
  </nova:flavor>
  <nova:owner>
    <nova:user uuid="702a1c7f8fe04d4c9a2d5d3bd3ab7d3c">demo</nova:user>
    <nova:project uuid="38bd8e984a3e435a87e950a441ee55aa">demo</nova:project>
  </nova:owner>
</nova:instance>"""
