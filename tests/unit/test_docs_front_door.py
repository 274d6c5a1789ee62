"""docs/front-door.md names every setting, key field, metric, rule and command of the front door."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from serve_app.access import usage
from serve_app.access.keyring import Key
from serve_app.access.quota import Standing
from serve_app.access.usage import Use
from serve_app.cli.keys import keys
from serve_app.config.access import Access
from serve_app.config.front_door import FrontDoorArgs
from serve_app.preflight import front_door as rules_of_front_door
from serve_app.preflight.rules import RULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/front-door.md").read_text()
EXAMPLES: list[Any] = [yaml.safe_load(e) for e in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)]


def example(name: str) -> Any:
    """The first example with this section."""
    return next(each[name] for each in EXAMPLES if name in each)


def test_the_example_of_a_front_door_is_valid_and_has_every_setting() -> None:
    args = example("applications")[0]["args"]
    FrontDoorArgs.model_validate(args)
    assert set(args) == set(FrontDoorArgs.model_fields)


def test_the_example_of_access_is_valid_and_has_every_setting() -> None:
    section = example("access")
    Access.model_validate(section)
    assert set(section) == set(Access.model_fields)


@pytest.mark.parametrize("name", [*Key.model_fields, *FrontDoorArgs.model_fields])
def test_every_field_is_named(name: str) -> None:
    assert re.search(rf"`{name}[`:]|^\s+{name}:", TEXT, re.MULTILINE)


def test_every_metric_is_described_with_its_labels() -> None:
    metrics = [made for made in vars(usage).values() if isinstance(made, MetricWrapperBase)]
    assert len(metrics) >= 3
    for metric in metrics:
        assert f"`{metric._name}{{{', '.join(metric._labelnames)}}}`" in TEXT


def test_the_line_of_the_record_has_every_field() -> None:
    (line,) = re.findall(r"```json\n(.*)\n```", TEXT)
    assert list(yaml.safe_load(line)) == ["time", *(field.name for field in fields(Use))]


def test_every_header_of_a_quota_is_named() -> None:
    for name, _ in Standing(1, 1, 1.0).headers():
        assert f"`{name.decode()}`" in TEXT


def test_every_rule_is_named_and_no_other() -> None:
    module = rules_of_front_door.__name__
    rules = {rule.id for rule in RULES.values() if rule.check.__module__ == module}
    assert len(rules) >= 7
    assert set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE)) & RULES.keys() == rules


def test_every_command_of_keys_is_named() -> None:
    names = [
        each.name or getattr(each.callback, "__name__", "") for each in keys.registered_commands
    ]
    assert len(names) >= 3
    for name in names:
        assert f"neuron-serve keys {name} " in TEXT


def test_the_config_file_is_there() -> None:
    assert "configs/local-cpu-models.yaml" in TEXT
    for target in re.findall(r"\]\(\.\./([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_readme_leads_there() -> None:
    assert "(docs/front-door.md)" in (ROOT / "README.md").read_text()
