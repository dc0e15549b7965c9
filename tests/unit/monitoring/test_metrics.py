# SPDX-License-Identifier: GPL-2.0-or-later
"""Each metric is described, each description is of a metric, and the alert rules ask for those that there are."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.rig.promql import asked
from tests.rig.repository import REPOSITORY
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import ExtentState, ParkedStep, Phase
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
SUFFIX = "_(bucket|count|sum)$"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
VALUES: dict[str, set[str]] = {
    "code": {*EXPLANATIONS},
    "phase": {phase.value for phase in Phase},
    "operation": {"prepare", "start", "started", "stopped", "release"},
}
"""What a label can be, where an expression asks for a value of it."""


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


def labels_of(expression: str, known: dict[str, set[str]]) -> set[str]:
    """Return the labels that the result of an expression can have; fail if it asks for what there is not."""
    question = asked(expression)
    assert question.metrics, expression
    there = {"instance"}
    for name, matchers in question.metrics.items():
        metric = re.sub(SUFFIX, "", name)
        assert metric in known, expression
        labels = known[metric] | {"instance"} | ({"le"} if name.endswith("_bucket") else set())
        for matcher in matchers:
            assert matcher.label in labels, expression
            if not matcher.value.startswith("$"):
                assert set(matcher.value.split("|")) <= VALUES[matcher.label], expression
        there |= labels
    for grouped in question.grouped:
        assert grouped <= there, expression
    return set().union(*question.grouped) if question.grouped else there


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
        labels = labels_of(rule["expr"], known)
        text = "".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, rule


def test_the_dashboard_asks_for_metrics_labels_and_values_that_exist(metrics: Metrics) -> None:
    known = names_and_labels(metrics)
    asked_for: set[str] = set()
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            labels = labels_of(target["expr"], known)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, target
            assert target["datasource"]["uid"] == "${datasource}"
            asked_for |= {re.sub(SUFFIX, "", name) for name in asked(target["expr"]).metrics}
    assert asked_for == known.keys()
    for variable in DASHBOARD["templating"]["list"][1:]:
        (expression, label) = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label in labels_of(expression, known)


def test_each_panel_of_the_dashboard_has_an_id_of_its_own_a_place_a_unit_and_a_description() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_dashboard_belongs_to_no_data_source_and_no_grafana_in_particular() -> None:
    first, *others = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert {variable["datasource"]["uid"] for variable in others} == {"${datasource}"}
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39  # Grafana 11's, which 12 reads


@pytest.mark.parametrize(
    "wrong", ["sum(a", "a)", "frob(a)", 'a{b="c}', "a{b}", "a{b=c}", "rate(a[5 m])", "sum by (a (b)", "a ? b"]
)
def test_an_expression_that_prometheus_would_not_read_is_noticed(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        asked(wrong)


def test_memory_of_parked_guests_is_counted_apart(metrics: Metrics, ledger: Ledger) -> None:
    for uuid, size in (("running", 4096), ("parked", 8192)):
        extent = ExtentPlan("pc.ram", "p", size, 4096, "none", ((-1, size),))
        ledger.reserve(Plan(uuid, uuid, (extent,)), {"pc.ram": Path(f"/p/{uuid}")}, {("p", -1): 1 << 20})
    ledger.set_parked("parked", ParkedStep.PARKED, Path("/state"))
    assert samples(metrics)["virt_dmem_parked_bytes"] == {("p",): 8192}


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
