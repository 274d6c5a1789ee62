"""docs/disaggregation.md names every setting, metric and config file of disaggregation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from serve_app.config import Prefill
from serve_app.config.prefill import Transfer
from serve_app.ingress import prefill
from serve_app.preflight.rules import RULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/disaggregation.md").read_text()
EXAMPLE = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.S)[0])["args"]


def test_the_example_is_valid_and_has_every_setting() -> None:
    section = EXAMPLE["prefill"]
    Prefill.model_validate({**section, "timeout_s": float(section["timeout_s"])})
    assert set(section) == set(Prefill.model_fields)
    assert set(section["transfer"]) == set(Transfer.model_fields)


def test_every_metric_is_described() -> None:
    metrics = [made for made in vars(prefill).values() if isinstance(made, MetricWrapperBase)]
    assert len(metrics) >= 6
    for metric in metrics:
        assert f"`{metric._name}" in TEXT, metric._name


def test_every_reason_of_a_fallback_is_named() -> None:
    for reason in ("none", "dead", "full", "timeout", "failed"):
        assert f"`{reason}`" in TEXT


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*-pd*.yaml")), ids=str)
def test_every_config_is_listed(config: Path) -> None:
    assert f"(../configs/{config.name})" in TEXT


def test_rules_that_it_names_exist() -> None:
    named = set(re.findall(r"`(pd-[a-z-]+)`", TEXT))
    assert named
    assert named <= RULES.keys()


def test_the_readme_leads_there() -> None:
    assert "(docs/disaggregation.md)" in (ROOT / "README.md").read_text()
