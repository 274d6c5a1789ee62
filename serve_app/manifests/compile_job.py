"""The Job that compiles once, on the right chip, into the store that the service then reads."""

from __future__ import annotations

from serve_app.config import Document
from serve_app.manifests import pod
from serve_app.manifests.budget import Budget
from serve_app.manifests.pools import Pool
from serve_app.manifests.ray_service import on_chips, serve_config, worker_pod
from serve_app.manifests.tree import Object, dump

_FILE = "/etc/neuron-serve/config/serve.yaml"
_HOURS_S = 4 * 3600
"""What a compile may always take; a large model with many buckets has taken more than one hour."""


def compile_jobs(document: Document, name: str, pools: list[Pool], budget: Budget) -> list[Object]:
    """A ConfigMap with the config file, and a Job for each kind of instance."""
    cluster = document.serve.cluster
    config: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": pod.metadata(name, cluster, "-compile"),
        "data": {"serve.yaml": dump(serve_config(document))},
    }
    kinds = [pool for pool in pools if pool.devices]
    suffixes = [""] if len(kinds) == 1 else [f"-{number}" for number, _ in enumerate(kinds)]
    jobs = zip(kinds, suffixes, strict=True)
    return [config, *(_job(document, name, pool, budget, suffix) for pool, suffix in jobs)]


def _job(document: Document, name: str, pool: Pool, budget: Budget, suffix: str) -> Object:
    cluster = document.serve.cluster
    volume = {"configMap": {"name": f"{name}-compile"}}
    mount = {"name": "config", "mountPath": _FILE.rpartition("/")[0], "readOnly": True}
    keys = on_chips(document, pool, read_only=False)
    spec = worker_pod(document, pool, read_only=False)
    container = pod.container(
        name="compile",
        # A whole command: the entry points of AWS's images run what they are given.
        command=["bash", "-c"],
        args=[" && ".join(_commands(pool, alone=not suffix))],
        **keys | {"volumeMounts": [*keys["volumeMounts"], mount]},
    )
    spec["volumes"] = [*spec["volumes"], {"name": "config", **volume}]
    secrets = ", ".join(pod.secrets(document))
    notes = {pod.SECRETS: secrets} if secrets else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": pod.metadata(name, cluster, f"-compile{suffix}", annotations=notes),
        "spec": {
            # A compiler that runs out of memory once may not a second time; a flag it refuses,
            # it always refuses.
            "backoffLimit": 1,
            "activeDeadlineSeconds": max(_HOURS_S, 2 * (budget.total + len(pool.engines) * 3600)),
            "ttlSecondsAfterFinished": 24 * 3600,
            "template": {
                "metadata": {
                    "labels": pod.labels(name, "compile"),
                    "annotations": {"karpenter.sh/do-not-disrupt": "true"},
                },
                "spec": {**spec, "restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def _commands(pool: Pool, alone: bool) -> list[str]:
    """One for the whole file, or one for each engine of this kind of instance."""
    command = f"neuron-serve compile {_FILE} --log {pod.LOCAL}/compile.log"
    if alone:
        return [command]
    labels = dict.fromkeys(engine.label for engine in pool.engines)
    return [f"{command} --application '{label}'" for label in labels]
