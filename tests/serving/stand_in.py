"""Real Ray, real Serve, Ray's real choice of cores; a stand-in for the engine, as there is no chip.

    python stand_in.py CONFIG CORES REPLICAS [FREE ...]

Deploys REPLICAS of the config's deployment options on a cluster of CORES `neuron_cores` ("detect":
those that Ray finds by itself), and prints one JSON object: the environment of each replica that
came up, and Serve's message. FREE: the cores that are left free when it deploys; others hold the
rest, as after some churn.
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


@ray.remote(num_cpus=0, resources={"neuron_cores": 1})
class Holder:
    """Holds one core."""

    def core(self) -> int:
        return int(os.environ["NEURON_RT_VISIBLE_CORES"])


def hold(cores: int, free: list[int]) -> list[ray.actor.ActorHandle]:
    """Take every core, then let those in `free` go."""
    holders = {ray.get(h.core.remote()): h for h in [Holder.remote() for _ in range(cores)]}
    for core in free:
        ray.kill(holders.pop(core))
    deadline = time.monotonic() + 30
    while ray.available_resources().get("neuron_cores", 0) < len(free):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return list(holders.values())


def main() -> None:
    config, given, replicas = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ((_, app),) = load(config).applications()
    plan = make_plan(app.args)
    assert plan.target is not None
    options = deployment_options(app.args, plan)
    options["num_replicas"] = replicas
    options["ray_actor_options"]["num_cpus"] = 0
    ray.init(
        address="local",
        resources=None if given == "detect" else {"neuron_cores": int(given)},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    cores = int(ray.cluster_resources().get("neuron_cores", 0))
    free = list(map(int, sys.argv[4:]))
    holders = hold(cores, free) if free else []
    cores = len(free) or cores
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
        if "side by side" in status.message:
            fits = 0
            break
        time.sleep(0.5)
    seen = set()

    async def ask() -> None:
        for _ in range(5):
            answers = await asyncio.gather(*(handle.remote() for _ in range(4 * fits)))
            seen.update(json.dumps(answer, sort_keys=True) for answer in answers)

    asyncio.run(ask())
    assert status is not None
    environments = [json.loads(environment) for environment in sorted(seen)]
    answer = {"cores": cores, "environments": environments, "message": status.message}
    print(json.dumps(answer))
    del holders
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
