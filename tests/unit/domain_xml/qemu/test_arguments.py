# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's arguments are read in every spelling that QEMU takes."""

from __future__ import annotations

import time

import pytest

from virt_dmem.domain_xml.qemu.arguments import FIRST, options


@pytest.mark.parametrize(
    ("argument", "text", "name", "values"),
    [
        ("-numa", "node,memdev=mem", "numa", {FIRST: "node", "memdev": "mem"}),
        ("--numa", "node,memdev=mem", "numa", {FIRST: "node", "memdev": "mem"}),
        ("-M", "memory-backend=mem", "machine", {"memory-backend": "mem"}),
        ("-machine", "pc,memory_backend=a,,b", "machine", {FIRST: "pc", "memory-backend": "a,b"}),
        ("-m", "2G", "m", {FIRST: "2G"}),
        ("-m", "size=2G,slots=4", "m", {"size": "2G", "slots": "4"}),
        ("-object", '{"qom-type": "memory-backend-ram", "id": "m", "size": 4}', "object",
         {"qom-type": "memory-backend-ram", "id": "m", "size": "4"}),
        ("-object", "{'qom-type':'memory-backend-ram','id':'m'}", "object",
         {"qom-type": "memory-backend-ram", "id": "m"}),
        ("-object", r'{"qom\u002dtype":"memory\u002dbackend-ram"}', "object", {"qom-type": "memory-backend-ram"}),
        ("-device", '{"driver":"pc-dimm","list":["a",{"memdev":"m"}],"on":true}', "device",
         {"driver": "pc-dimm", "memdev": "m", "on": "true"}),
        ("-mem-prealloc", "", "mem-prealloc", {}),
    ],
)  # fmt: skip
def test_an_option_is_read(argument: str, text: str, name: str, values: dict[str, str]) -> None:
    (option,) = options([argument, text])
    assert (option.name, option.text, option.values) == (name, text, values)


def test_the_value_of_an_option_is_the_next_argument_whatever_came_before() -> None:
    found = [(option.name, option.text) for option in options(["-S", "-m", "1G", "image", "-usb"])]
    assert found == [("S", "-m"), ("m", "1G"), ("usb", "")]


@pytest.mark.parametrize("text", ['{"' + '\\"' * 500_000, '{"' + "a" * 10**6 + "\\", "{" * 10**6, "'{" * 500_000])
def test_json_that_does_not_end_is_read_once(text: str) -> None:
    began = time.process_time()
    assert len(list(options(["-object", text]))) == 1
    assert time.process_time() - began < 20
