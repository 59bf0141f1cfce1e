"""The dashboard, the alerts and the list of metrics name what a server exports, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from router_ml.journal import Journal
from router_ml.meter import Meter
from router_ml.metrics import ServerMetrics
from router_ml.traffic import InForce
from router_ml.types import Decision, Reason, ShadowTest

OPS = Path(__file__).parents[2] / "ops"
ALERT_RULES = OPS / "prometheus" / "alerts.yaml"
README = (OPS / "README.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((OPS / "grafana" / "router-ml.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load(ALERT_RULES.read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = {
    f"{panel['title']}/{target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
} | {rule["alert"]: rule["expr"] for rule in RULES}
VARIABLES = [item["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]

METRIC = re.compile(r"\b(router_ml_[a-z_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")
OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus adds to what it scrapes."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """Sample name -> label -> values, of a server that has done a bit of everything."""
    metrics = ServerMetrics()
    meter = Meter(metrics.memories[0])
    meter.count("Route", decisions=[Decision("", "", "small", (), (), (Reason.BEST_VALUE,), 1.0, 0.9, "7", "", "")])
    with Journal(tmp_path_factory.mktemp("journal")) as journal:
        meter.journal(journal.stats)
    metrics.in_force(InForce("7", "ab", (), (ShadowTest("next", "salt", "session", (), 0.1, "8", "cd"),)))
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize("query", [*QUERIES.values(), *VARIABLES], ids=[*QUERIES, *VARIABLES])
def test_a_query_asks_for_metrics_and_labels_that_are_exported(
    query: str, exported: dict[str, dict[str, set[str]]]
) -> None:
    names = METRIC.findall(query)
    assert names or "up{" in query
    for name, selector in names:
        assert name in exported, name
        for label, pattern in LABEL.findall(selector):
            if label in OF_TARGETS:
                continue
            for value in pattern.split("|"):
                assert value in exported[name].get(label, set()), f"{name}: no {label}={value}"
    known = OF_TARGETS | {"le"}.union(*(exported[name] for name, _ in names))
    for labels in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= known, labels


def test_every_metric_is_exported_and_documented_alike(exported: dict[str, dict[str, set[str]]]) -> None:
    rows = re.findall(r"^\| `(router_ml_[a-z_]+)` \|(.*?)\|", README, flags=re.MULTILINE)
    documented = {name: set(re.findall(r"`([a-z0-9_]+)`", labels)) for name, labels in rows}
    assert len(documented) == len(rows)
    assert documented == {family(name): set(labels) - {"le"} for name, labels in exported.items()}


def test_every_metric_is_drawn_on_the_dashboard(exported: dict[str, dict[str, set[str]]]) -> None:
    drawn = {family(name) for query in QUERIES.values() for name, _ in METRIC.findall(query)}
    assert drawn == {family(name) for name in exported}


def test_every_metric_has_our_prefix_and_base_units(exported: dict[str, dict[str, set[str]]]) -> None:
    for name in exported:
        assert name.startswith("router_ml_")
        assert not re.search(r"_(ms|us|ns|millis|micros|kb|mb|percent)(_|$)", name)


def test_panels_lie_side_by_side_and_every_query_has_its_parentheses() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for name, query in QUERIES.items():
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
def test_prometheus_takes_the_alerts() -> None:
    checked = subprocess.run(["promtool", "check", "rules", ALERT_RULES], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_every_alert_says_how_bad_it_is_and_what_happens() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
