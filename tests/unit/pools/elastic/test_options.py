# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of elastic pools: which belong together, and which contradict each other."""

from __future__ import annotations

import argparse

import pytest

from virt_dmem.errors import UsageError
from virt_dmem.pools.backends import table
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.pools.elastic import options
from virt_dmem.units import GIB, MIB

PAGE = 2 * MIB


def settings(*words: str, sized: bool = False) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    table.add_options(parser)
    return table.settings(parser.parse_args([*words]), sized=sized)


def test_a_pool_without_the_option_is_a_fixed_one() -> None:
    assert "elastic" not in settings(sized=True)


def test_what_is_not_given_has_a_default() -> None:
    assert settings("--elastic", "--max", "64G")["elastic"] == ElasticLimits(64 * GIB, 0, GIB, 600)


def test_all_limits_can_be_given() -> None:
    words = ("--elastic", "--max", "64G", "--min", "8G", "--keep-free", "4G", "--linger", "10min")
    assert settings(*words)["elastic"] == ElasticLimits(64 * GIB, 8 * GIB, 4 * GIB, 600)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("2m", 120), ("2min", 120), ("1h", 3600)])
def test_memory_lingers_for_any_time_or_not_at_all(text: str, seconds: int) -> None:
    found = settings("--elastic", "--max", "1G", "--linger", text)["elastic"]
    assert isinstance(found, ElasticLimits)
    assert found.linger_seconds == seconds


@pytest.mark.parametrize(
    ("words", "sized", "what"),
    [
        (("--max", "1G"), True, "--max is about elastic pools"),
        (("--linger", "0"), True, "--linger is about elastic pools"),
        (("--elastic", "--max", "1G"), True, "no fixed size"),
        (("--elastic",), False, "The most that the pool may have is missing"),
        (("--elastic", "--max", "1G", "--min", "2G"), False, "more than --max"),
        (("--elastic", "--max", "1G", "--keep-free", "4M"), False, "cannot be left with 4 MiB"),
        (("--elastic", "--max", "1G", "--existing-pages"), False, "takes no pages that the host has"),
        (("--elastic", "--max", "1G", "--backend", "tmpfs"), False, "tmpfs pool cannot be elastic"),
        (("--max", "1G", "--backend", "dmemfs"), False, "dmemfs pool cannot be elastic"),
    ],
)
def test_options_that_contradict_each_other_are_rejected(words: tuple[str, ...], sized: bool, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        settings(*words, sized=sized)


def test_the_minimum_is_spread_evenly_and_a_node_without_any_is_there_all_the_same() -> None:
    limits = ElasticLimits(GIB, 3 * PAGE, GIB, 0)
    assert options.first_sizes(limits, PAGE, [0, 1]) == {0: 2 * PAGE, 1: PAGE}
    assert options.first_sizes(ElasticLimits(GIB, 0, GIB, 0), PAGE, [0, 2]) == {0: 0, 2: 0}


def test_limits_between_pages_are_rejected_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="--max 3145728 bytes") as caught:
        options.first_sizes(ElasticLimits(3 * MIB, 0, GIB, 0), PAGE, [0])
    assert "2M or 4M" in caught.value.hint
    with pytest.raises(UsageError, match="--min 1048576 bytes") as caught:
        options.first_sizes(ElasticLimits(4 * MIB, MIB, GIB, 0), PAGE, [0])
    assert "is 2M" in caught.value.hint
