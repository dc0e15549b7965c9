# SPDX-License-Identifier: GPL-2.0-or-later
"""What plan-host says, for hosts of many kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.fake_tree import GIB, MIB, fake_tree
from virt_dmem.cli.main import main
from virt_dmem.cli.parser import build_parser
from virt_dmem.errors import ExitStatus
from virt_dmem.pools.backends.host_options import HostFacts, HostOption
from virt_dmem.pools.host_planning import plan_host, read_host, warnings

KIB = 1 << 10
PARSER = build_parser()
TWO_NODES = HostFacts(nodes={0: 192 * GIB, 1: 192 * GIB}, page_sizes=(2 * MIB, GIB), hvo=False, cma_bytes=0)


def of(options: list[HostOption], backend: str, page_size: int) -> HostOption:
    (found,) = [option for option in options if (option.backend, option.page_size) == (backend, page_size)]
    return found


@pytest.mark.parametrize(
    ("backend", "page_size", "left"),
    [
        ("tmpfs", 4 * KIB, 5 * GIB),
        ("hugetlbfs", 2 * MIB, 640 * MIB),
        ("hugetlbfs", GIB, 1280 * KIB),
        ("dmemfs", 2 * MIB, 320 * (4096 + 128)),
    ],
)
def test_for_320_gib_gross_is_5_gib_and_what_is_left_is_what_the_kernel_keeps(
    backend: str, page_size: int, left: int
) -> None:
    option = of(plan_host(320 * GIB, TWO_NODES), backend, page_size)
    assert (option.gross_bytes, option.metadata_left_bytes, option.net_bytes) == (5 * GIB, left, 5 * GIB - left)


@pytest.mark.parametrize(
    ("backend", "page_size", "line", "pool_create"),
    [
        ("tmpfs", 4 * KIB, "", "--backend tmpfs --size 320G"),
        ("hugetlbfs", 2 * MIB, "hugetlb_free_vmemmap=on", "--page-size 2M --node 0=160G --node 1=160G"),
        (
            "hugetlbfs",
            GIB,
            "hugetlb_free_vmemmap=on hugetlb_cma=0:160G,1:160G",
            "--page-size 1G --node 0=160G --node 1=160G",
        ),
        ("dmemfs", 2 * MIB, "memmap=160G$START0 memmap=160G$START1", ""),
    ],
)
def test_the_kernel_command_line_and_the_pool_are_spread_over_the_nodes(
    backend: str, page_size: int, line: str, pool_create: str
) -> None:
    option = of(plan_host(320 * GIB, TWO_NODES), backend, page_size)
    assert option.kernel_command_line == line
    assert option.pool_create.removeprefix("virt-dmem pool create NAME ") == pool_create


def test_without_cma_pages_of_1_gib_are_set_aside_at_boot() -> None:
    facts = HostFacts(TWO_NODES.nodes, TWO_NODES.page_sizes, hvo=True, cma_bytes=None)
    option = of(plan_host(321 * GIB, facts), "hugetlbfs", GIB)
    assert option.kernel_command_line == "hugetlb_free_vmemmap=on hugepagesz=1G hugepages=0:161,1:160"
    assert option.pool_create.endswith(" --existing-pages")
    one_node = HostFacts({0: 400 * GIB}, (GIB,), hvo=True, cma_bytes=None)
    assert "hugepagesz=1G hugepages=321" in of(plan_host(321 * GIB, one_node), "hugetlbfs", GIB).kernel_command_line


@pytest.mark.parametrize(
    ("page_sizes", "hvo", "cma", "best", "reason"),
    [
        ((2 * MIB, GIB), True, None, ("hugetlbfs", 2 * MIB), "1 GiB would save 638.8 MiB more"),
        ((2 * MIB, GIB), False, 64 * MIB, ("hugetlbfs", 2 * MIB), "as it was booted"),
        ((2 * MIB, GIB), True, 320 * GIB, ("hugetlbfs", GIB), "already keeps 320 GiB"),
        ((2 * MIB,), True, None, ("hugetlbfs", 2 * MIB), "Saves 4.4 GiB of 5 GiB"),
        ((64 * KIB, 2 * MIB, 32 * MIB, GIB), None, None, ("hugetlbfs", 2 * MIB), "no HVO"),
        ((), None, None, ("tmpfs", 4 * KIB), "no huge pages"),
    ],
)
def test_one_is_recommended_and_says_why(
    page_sizes: tuple[int, ...], hvo: bool | None, cma: int | None, best: tuple[str, int], reason: str
) -> None:
    options = plan_host(320 * GIB, HostFacts({0: 400 * GIB}, page_sizes, hvo, cma))
    (recommended,) = [option for option in options if option.recommended]
    assert (recommended.backend, recommended.page_size) == best
    assert reason in recommended.reason
    assert recommended.pool_create


def test_without_hvo_huge_pages_save_nothing() -> None:
    facts = HostFacts({0: GIB}, (2 * MIB,), hvo=None, cma_bytes=None)
    option = of(plan_host(GIB, facts), "hugetlbfs", 2 * MIB)
    assert (option.net_bytes, option.kernel_command_line) == (0, "")


@given(
    size=st.integers(1, 1 << 45),
    totals=st.dictionaries(st.integers(0, 9), st.integers(MIB, 1 << 44), min_size=1, max_size=4),
    hvo=st.sampled_from([None, False, True]),
    cma=st.none() | st.integers(0, 1 << 45),
)
def test_figures_add_up_and_the_pool_command_parses(
    size: int, totals: dict[int, int], hvo: bool | None, cma: int | None
) -> None:
    for option in plan_host(size, HostFacts(totals, (64 * KIB, 2 * MIB, GIB), hvo, cma)):
        assert option.gross_bytes == option.metadata_left_bytes + option.net_bytes == option.size_bytes // 64
        assert 0 <= option.metadata_left_bytes <= option.gross_bytes
        assert size <= option.size_bytes < size + GIB
        if option.pool_create:
            args = PARSER.parse_args(option.pool_create.split()[1:])
            assert (args.size or sum(share for _, share in args.node)) == option.size_bytes
            assert args.page_size in (None, option.page_size)


def test_a_tree_of_another_host_can_be_read(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=(16 * GIB, 0, 8 * GIB), hvo="1")
    facts = read_host(root=root)
    assert not facts.probe("dmemfs").available
    assert facts == HostFacts({0: 16 * GIB, 2: 8 * GIB}, (2 * MIB, GIB), True, None, probes=facts.probes)
    with (root / "proc/meminfo").open("a") as file:
        file.write("CmaTotal:         65536 kB\n")
    assert read_host(root=root).cma_bytes == 64 * MIB
    assert "24 GiB in all" in warnings(320 * GIB, facts)[0]
    assert warnings(20 * GIB, facts) == []


def test_the_command_says_the_same_to_people_and_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-host", "--guest-memory", "320G", "--all"]) == ExitStatus.DONE
    said = capsys.readouterr().out
    assert main(["plan-host", "--guest-memory", "320G", "--json"]) == ExitStatus.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["guest_memory_bytes"] == 320 * GIB
    for option in plan["options"]:
        assert option["kernel_command_line"] in said
        assert option["pool_create"] in said
    assert main(["plan-host", "--guest-memory", "320G", "--bytes", "-o", "backend,left"]) == ExitStatus.DONE
    assert capsys.readouterr().out.splitlines()[1].split() == ["tmpfs", str(5 * GIB)]
