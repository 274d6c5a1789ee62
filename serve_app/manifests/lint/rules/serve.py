"""Rules about the Serve config inside a RayService, and what Ray's containers owe it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.manifests.lint.objects import at, each, mapping
from serve_app.manifests.lint.quantity import amount
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.serving import Serving, serving
from serve_app.manifests.lint.view import Manifests, Pod, Ray

CONFIG = "spec.serveConfigV2"
_OURS = "serve_app/config, serve_app/preflight: what the replica itself refuses"
_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"}
_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"


def served(manifests: Manifests) -> Iterator[tuple[Ray, Serving]]:
    """The RayServices with their Serve configs."""
    for ray in manifests.rays:
        text = at(ray.object, "spec", "serveConfigV2")
        if ray.object["kind"] == "RayService" and isinstance(text, str):
            yield ray, serving(text)


@rule("serve-missing", "A RayService has a Serve config", "Ray Serve: without one nothing runs")
def missing(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("RayService"):
        if not str(at(thing, "spec", "serveConfigV2") or "").strip():
            yield Trip(thing, CONFIG, "there is no Serve config", "write the config file there")


@rule("serve-check", "The Serve config is one that starts, as `neuron-serve check` says", _OURS)
def check(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        if str(at(ray.object, "spec", "serveConfigV2")).strip():
            for fault in config.faults:
                place = f"{fault.path}: " if fault.path else ""
                yield Trip(ray.object, CONFIG, f"{place}{fault.message}", fault.mend)


@rule("serve-cluster", "The section `cluster` is not for Ray Serve", "serve_app/config/cluster.py")
def cluster(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        if "cluster" in mapping(config.data):
            message = "`cluster` is what the manifests are rendered from"
            yield Trip(ray.object, CONFIG, message, "remove it there")


@rule(
    "serve-http",
    "Serve listens where the Service, the probes and the ports of the pods expect it",
    "kuberay v1.7.0 ray-operator/controllers/ray/common/pod.go (readiness of workers), service.go",
)
def http(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        if config.document is None:
            continue
        host = config.document.serve.http_options.host
        if host not in ("0.0.0.0", "::"):
            message = f"http_options.host {host}: no other pod reaches it"
            yield Trip(ray.object, CONFIG, message, "set 0.0.0.0")
        if ray.workers and config.document.serve.proxy_location != "EveryNode":
            probed = [p for p in ray.workers if not at(p.main, "readinessProbe")]
            message = "workers without a proxy never become ready"
            if probed:
                yield Trip(ray.object, CONFIG, message, "set proxy_location: EveryNode")
        for pod in ray.pods:
            for index, port in enumerate(each(pod.main, "ports")):
                number = at(port, "containerPort")
                if at(port, "name") == "serve" and number != config.port:
                    message = f"port serve is {number}, and Serve listens on {config.port}"
                    path = pod.at(f"containers[0].ports[{index}]")
                    yield Trip(ray.object, path, message, "make them the same")


@rule(
    "serve-haproxy",
    "Every Ray container starts Serve with HAProxy and direct ingress",
    "Ray 2.60 serve/_private/constants.py; serve_app/edge/haproxy.py",
)
def haproxy(manifests: Manifests) -> Iterator[Trip]:
    for ray, _ in served(manifests):
        for pod in ray.pods:
            given = pod.environment()
            wrong = [f"{n}={v}" for n, v in _FLAGS.items() if at(given.get(n), "value") != v]
            if not at(given.get(_PROGRAM), "value"):
                wrong.append(f"{_PROGRAM}=<neuron-serve-haproxy in the image>")
            if wrong:
                message = f"without {', '.join(wrong)} each token goes through Python"
                yield Trip(ray.object, pod.at("containers[0].env"), message, "set it on all pods")


@rule(
    "serve-variables",
    "Every ${NAME} of the Serve config is a variable of the pods that read it",
    "serve_app/config/environment.py: the replica refuses to start",
)
def variables(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        for pod in ray.workers or (ray.head,):
            given = pod.environment().keys()
            if each(pod.main, "envFrom"):
                continue  # what a Secret holds is not known here
            for name in sorted(config.variables - given):
                path = pod.at("containers[0].env")
                yield Trip(ray.object, path, f"${{{name}}} is not set", f"add {name}")


@rule(
    "serve-capacity",
    "All replicas find their cores and CPUs on the worker pods",
    "serve_app/backends (ray_actor_options); kuberay v1.7.0 common/pod.go "
    "updateRayStartParamsResources, generateRayStartCommand: what a Ray node offers",
)
def capacity(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        if config.engines:
            yield from _capacity(ray, config)


def _capacity(ray: Ray, config: Serving) -> Iterator[Trip]:
    free = [(pod, _offer(pod)) for pod in (*ray.workers, ray.head) for _ in range(pod.count)]
    for engine in config.engines:
        options, target = engine.plan.actor_options, engine.plan.target
        needs = {
            "neuron_cores": float(options.get("resources", {}).get("neuron_cores", 0)),
            "CPU": float(options.get("num_cpus") or 0),
        }
        instance = target.instance.name if target else None
        fitting = [offer for pod, offer in free if _suits(pod, instance)]
        for _ in range(engine.most):
            spot = next(
                (o for o in fitting if all(o[r] >= need for r, need in needs.items())), None
            )
            if spot is None:
                wanted = " and ".join(f"{need:g} {r}" for r, need in needs.items() if need)
                message = f"{engine.most} of {engine.label} want {wanted} each: {_shown(ray)}"
                mend = "raise maxReplicas or the group's resources, or lower the replicas"
                yield Trip(ray.object, f"{ray.path}.workerGroupSpecs", message, mend)
                break
            for resource, need in needs.items():
                spot[resource] -= need


def _suits(pod: Pod, instance: str | None) -> bool:
    types = pod.instance_types
    return instance is None or not types or instance in types


def _offer(pod: Pod) -> dict[str, float]:
    """What one pod of the group gives Ray."""
    given, params = mapping(pod.group, "resources"), mapping(pod.group, "rayStartParams")
    cpus = given.get("CPU", params.get("num-cpus"))
    return {
        "neuron_cores": float(amount(given.get("neuron_cores"))) or _cores(params),
        "CPU": float(pod.limit("cpu") if cpus is None else amount(cpus)),
    }


def _cores(params: dict[str, object]) -> float:
    """neuron_cores in rayStartParams: JSON in quotes of a shell."""
    found = re.search(r"neuron_cores\W+(\d+)", str(params.get("resources")))
    return float(found[1]) if found else 0.0


def _shown(ray: Ray) -> str:
    parts = [
        f"{pod.count} with " + " and ".join(f"{most:g} {r}" for r, most in _offer(pod).items())
        for pod in ray.workers
    ]
    return f"worker pods are {', '.join(parts) or 'none'}"
