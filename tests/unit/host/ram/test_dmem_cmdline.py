# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the original dmemfs' kernel parameter, and compute what it asks for."""

from __future__ import annotations

import pytest

from tests.rig.fake_tree import GIB, MIB
from virt_dmem.errors import UsageError
from virt_dmem.host.ram.dmem_cmdline import Parameter, parameters, parse_parameter, wanted
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1G", Parameter("dmem=1G", GIB)),
        ("512M:2M", Parameter("dmem=512M:2M", 512 * MIB, align=2 * MIB)),
        ("!4G", Parameter("dmem=!4G", 4 * GIB, kept=True)),
        ("!4G:1G", Parameter("dmem=!4G:1G", 4 * GIB, align=GIB, kept=True)),
        ("1G@0x180000000", Parameter("dmem=1G@0x180000000", GIB, start=6 * GIB)),
        ("1G@6G:1G", Parameter("dmem=1G@6G:1G", GIB, align=GIB, start=6 * GIB)),
    ],
)
def test_the_originals_parameter_is_understood(text: str, found: Parameter) -> None:
    assert parse_parameter(text) == found
    assert parameters(f"quiet dmem={text} memmap=1G$2G") == (found,)


@pytest.mark.parametrize("text", ["", "!", "x", "1G:3M", "1G:0", "0", "!1G@2G", "1G@", "1G:", "@1G"])
def test_what_is_no_such_parameter_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="dmem="):
        parse_parameter(text)


def test_the_parameter_means_sizes_of_nodes() -> None:
    ram = {0: (Range(0, 3 * GIB), Range(4 * GIB, 5 * GIB)), 1: (Range(9 * GIB, 8 * GIB),)}
    assert wanted(parameters("dmem=1G"), ram) == {0: GIB, 1: GIB}
    assert wanted(parameters("dmem=100M"), ram) == {0: SECTION, 1: SECTION}
    assert wanted(parameters("dmem=!2G"), ram) == {0: 6 * GIB, 1: 6 * GIB}
    assert wanted(parameters("dmem=!9G"), ram) == {}
    assert wanted(parameters("dmem=2G@8G"), ram) == {0: GIB, 1: GIB}
    assert wanted(parameters("dmem=1G@4G dmem=1G@12G"), ram) == {0: GIB, 1: GIB}
