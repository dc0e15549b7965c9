# SPDX-License-Identifier: GPL-2.0-or-later
"""Each metric is described, each description is of a metric, and the alert rules ask for those that there are."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.rig.repository import REPOSITORY
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, Phase
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.reclaim import Reclaimer
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.monitoring.alert_codes import EXPLANATIONS
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.monitoring.metrics import Metrics, write_textfile
from virt_dmem.runtime.attempts import Attempts

DOCS = REPOSITORY / "docs/reference"
DESCRIBED = re.compile(r"^\| `(virt_dmem_\w+)` \|([^|]*)\|", re.MULTILINE)
NAME = re.compile(r"\bvirt_dmem_\w+")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot")
    yield ledger
    ledger.close()


@pytest.fixture
def metrics(tmp_path: Path, ledger: Ledger) -> Metrics:
    """Of a daemon that has just begun, on a host with one pool that is recorded and not mounted."""
    record = (
        '{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/nowhere/p", "state": "ready",'
        ' "nodes": {"-1": {"wanted_bytes": 4096, "got_bytes": 4096}}}'
    )
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools/p.json").write_text(record)
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path), run_dir=str(tmp_path)))
    inventory = Inventory(config, ledger)
    prezero = PrezeroCache(config, ledger, inventory)
    watch = AlertTracker(config, ledger, inventory, Reclaimer(ledger, inventory, prezero), Attempts())
    return Metrics(config, ledger, prezero, watch)


def samples(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by its name and the values of its labels, these by name."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def names_and_labels(metrics: Metrics) -> dict[str, set[str]]:
    """Every metric as the documents name it, with its labels."""
    with metrics.hook("prepare"):
        pass
    with pytest.raises(NotEnoughMemory), metrics.hook("prepare"):
        raise NotEnoughMemory("", hint="")
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        if not family.name.endswith("_created"):
            total = "_total" if family.type == "counter" else ""
            labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
            found[f"{family.name}{total}"] = labels
    return found


def test_every_metric_is_described_and_every_description_is_of_a_metric(metrics: Metrics) -> None:
    described = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in DESCRIBED.findall((DOCS / "metrics.md").read_text("utf-8"))
    }
    assert described == names_and_labels(metrics)


def test_every_metric_says_what_it_is(metrics: Metrics) -> None:
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert family.documentation.endswith(".") or family.name.endswith("_created")


def test_the_alert_rules_ask_for_metrics_and_codes_that_exist(metrics: Metrics) -> None:
    rules = [
        rule
        for group in yaml.safe_load((DOCS / "prometheus-rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    known = names_and_labels(metrics)
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        asked = {re.sub("_(bucket|count|sum)$", "", name) for name in NAME.findall(rule["expr"])}
        assert asked, rule
        assert asked <= known.keys(), rule
        for matched in re.findall(r'code=~?"([^"]*)"', rule["expr"]):
            assert set(matched.split("|")) <= EXPLANATIONS.keys(), rule
        labels = {"instance"}.union(*(known[name] for name in asked))
        text = "".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, rule


def test_what_is_held_is_counted(metrics: Metrics, ledger: Ledger) -> None:
    extents = (
        ExtentPlan("ram-node0", "p", 4096, 4096, "none", ((-1, 4096),)),
        ExtentPlan("ram-node1", "p", 8192, 4096, "none", ((-1, 8192),)),
    )
    paths = {"ram-node0": Path("/p/0"), "ram-node1": Path("/p/1")}
    ledger.reserve(Plan("uuid", "guest", extents), paths, {("p", -1): 1 << 20})
    ledger.set_phase("uuid", Phase.RUNNING)
    held = ledger.find("uuid")
    assert held is not None
    ledger.quarantine(held.extents[0])
    assert ledger.quarantined()[0].state is ExtentState.QUARANTINED
    found = samples(metrics)
    assert found["virt_dmem_pool_reserved_bytes"] == {("any", "p"): 12288}
    assert found["virt_dmem_pool_capacity_bytes"] == {("any", "p"): 0}
    assert found["virt_dmem_quarantined_bytes"] == {("p",): 4096}
    assert found["virt_dmem_domains"][("running",)] == 1
    assert found["virt_dmem_alerts"][("pool-short-of-reservations",)] == 1
    assert found["virt_dmem_alerts"][("extent-quarantined",)] == 1
    assert found["virt_dmem_alerts"][("apply-paused",)] == 0


def test_an_operation_that_fails_is_counted_by_its_code_and_measured_all_the_same(metrics: Metrics) -> None:
    with pytest.raises(NotEnoughMemory), metrics.hook("prepare"):
        raise NotEnoughMemory("asked for more than there is", hint="")
    with metrics.hook("prepare"):
        pass
    found = samples(metrics)
    assert found["virt_dmem_hook_refused_total"] == {("not-enough-memory", "prepare"): 1}
    assert found["virt_dmem_hook_seconds_count"] == {("prepare",): 2}


def test_the_textfile_is_readable_by_the_exporter_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "virt_dmem.prom"
    for text in (b"one 1\n", b"two 2\n"):
        write_textfile(path, text)
        assert path.read_bytes() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
