"""`check --show` prints what the replica runs: command, environment, Ray's options."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

import pytest

from serve_app.backends import engines_of, make_plan
from serve_app.cli.main import _resolved
from serve_app.config import load
from serve_app.deployments.options import deployment_options
from serve_app.engine import engine
from serve_app.engine.phases import Phases

pytestmark = pytest.mark.usefixtures("own_environment")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
ENGINES = [(config, engine.label) for config in CONFIGS for engine in engines_of(load(config))]


class Started(Exception):
    """Ends the replica's start where vLLM would begin; there is no chip."""


@pytest.mark.parametrize(
    ("config", "label"), ENGINES, ids=[f"{config.stem}-{label}" for config, label in ENGINES]
)
def test_what_is_shown_is_what_runs(
    config: Path, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config.read_text().replace("frozen: true", "frozen: false")
    file = tmp_path / config.name
    file.write_text(re.sub(r"path: /var/lib/neuron-serve", f"path: {tmp_path}", text))
    shown = _resolved(load(file))[label]
    (engine_of,) = [made for made in engines_of(load(file)) if made.label == label]
    deployment, args = engine_of.deployment, engine_of.args
    plan = make_plan(args)
    if plan.target is not None:  # as Ray sets it by the actor's resource
        cores = plan.actor_options["resources"]["neuron_cores"]
        assert cores == plan.target.cores
        os.environ["NEURON_RT_VISIBLE_CORES"] = ",".join(map(str, range(cores)))
    monkeypatch.setattr(engine, "fetch", lambda source, *rest: source)

    def started(command: list[str], *rest: object) -> None:
        raise Started(shlex.join(command))

    monkeypatch.setattr(engine, "_start", started)
    with pytest.raises(Started) as run:
        asyncio.run(engine.start_engine(args, plan, Phases()))
    assert str(run.value) == shown["command"]
    environment = dict(shown["environment"])
    artifact = environment.pop("NEURON_COMPILED_ARTIFACTS", None)
    assert {name: os.environ.get(name) for name in environment} == environment
    if artifact is not None:  # compiled into a draft that gets this name when the engine runs
        draft = Path(os.environ["NEURON_COMPILED_ARTIFACTS"])
        assert draft.name.startswith(f".{Path(artifact).name}.draft-{os.getpid()}@")
        assert draft.parent == Path(artifact).parent
    assert shown["deployment"] == deployment_options(args, plan, deployment)
