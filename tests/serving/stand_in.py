"""Real Ray, real Serve, Ray's real choice of cores; a stand-in for the engine, as there is no chip.

    python stand_in.py CONFIG CORES REPLICAS

Deploys REPLICAS of the config's deployment options on a cluster of CORES `neuron_cores`, and
prints one JSON object: the environment of each replica that came up, and Serve's message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time

import ray
from ray import serve

from serve_app.backends import make_plan
from serve_app.config import load
from serve_app.deployments.options import deployment_options
from serve_app.engine.cores import claim_cores


class StandIn:
    """Takes the cores of an engine and does nothing with them."""

    def __init__(self, backend: str, cores: int) -> None:
        claim_cores(backend, cores, os.environ)
        names = ("NEURON_RT_VISIBLE_CORES", "NEURON_VISIBLE_DEVICES")
        self.environment = {name: os.environ[name] for name in names if name in os.environ}

    async def __call__(self) -> dict[str, str]:
        await asyncio.sleep(0.3)  # so that requests spread over the replicas
        return self.environment


def main() -> None:
    config, cores, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ((_, app),) = load(config).applications()
    plan = make_plan(app.args)
    assert plan.target is not None
    options = deployment_options(app.args, plan)
    options["num_replicas"] = replicas
    options["ray_actor_options"]["num_cpus"] = 0
    ray.init(
        address="local",
        resources={"neuron_cores": cores},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    deployment = serve.deployment(StandIn).options(**options)
    handle = serve._run(
        deployment.bind(plan.backend, plan.target.cores), name="app", _blocking=False
    )
    fits = min(replicas, cores // plan.target.cores)
    status = None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = serve.status().applications["app"].deployments["engine"]
        running = status.replica_states.get("RUNNING", 0)
        if running == fits and (fits == replicas or "neuron_cores" in status.message):
            break
        time.sleep(0.5)
    seen = set()

    async def ask() -> None:
        for _ in range(5):
            answers = await asyncio.gather(*(handle.remote() for _ in range(4 * fits)))
            seen.update(json.dumps(answer, sort_keys=True) for answer in answers)

    asyncio.run(ask())
    assert status is not None
    print(
        json.dumps(
            {"environments": [json.loads(e) for e in sorted(seen)], "message": status.message}
        )
    )
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
