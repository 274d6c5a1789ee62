"""How long a first start may take, from nothing to an answer. Estimates, on the long side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve_app.backends.engines import EngineOf
from serve_app.manifests.pools import Pool
from serve_app.manifests.weights import model_of, weights_gib

NODE_S = 300
"""A new EC2 instance joins and its device plugin answers. Rough."""
PULL_GIB_S = 0.1
IMAGE_GIB = {"cpu": 3, "neuron": 15}
"""Of the images here and of AWS's. Not verified on a node."""
DOWNLOAD_GIB_S = 0.2
"""From the hub to a shared volume. Rough."""
COMPILE_S = {"small": 1800, "large": 3600}
LOAD_S = {"small": 180, "large": 300}
"""Qwen3-8B compiles in 10 to 30 minutes and loads in 1 to 3, a 70B model in 20 to 60 and 2 to 5
(AWS's Qwen3 and Llama 3 guides; aws-neuron-sdk, nxd-inference vLLM user guide, Known issues)."""
_LARGE = 20e9


@dataclass(frozen=True)
class Budget:
    """Seconds of each step of a start."""

    node: int
    image: int
    download: int
    compile: int
    load: int

    @property
    def total(self) -> int:
        return self.node + self.image + self.download + self.compile + self.load

    def __str__(self) -> str:
        steps = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value)
        return f"{self.total} s: {steps}"


def budget(pools: Iterable[Pool], facts: Path | None = None) -> Budget:
    """Of the slowest pool, in each step."""
    made = [_of_engine(pool, engine, facts) for pool in pools for engine in pool.engines]
    return Budget(*(max(getattr(one, name) for one in made) for name in Budget.__annotations__))


def _of_engine(pool: Pool, engine: EngineOf, facts: Path | None) -> Budget:
    model = model_of(engine.args, facts)
    kind = "cpu" if pool.instance is None else "neuron"
    size = "large" if model is not None and model.parameters > _LARGE else "small"
    compiles = pool.instance is not None and not engine.args.artifacts.frozen
    return Budget(
        node=NODE_S if pool.instance is not None else 0,
        image=int(IMAGE_GIB[kind] / PULL_GIB_S),
        download=int(weights_gib(engine.args, facts) / DOWNLOAD_GIB_S),
        compile=COMPILE_S[size] if compiles else 0,
        load=LOAD_S[size] if pool.instance is not None else 120,
    )
