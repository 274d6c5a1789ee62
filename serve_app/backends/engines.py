"""The engines of an application: one, or with a `prefill` section two kinds.

Each is an `AppArgs` of its own without `prefill`, so that plans, rules and replicas know single
engines only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from serve_app.backends.choice import choose_backend
from serve_app.config import AppArgs, Document, Prefill
from serve_app.config.serve_file import DECODE, ENGINE, PREFILL

_BUFFER = {"cpu": "cpu", "nxdi": "cpu", "neuron": "cuda"}
"""`kv_buffer_device`; for the native plugin cuda is the Neuron device (vllm-neuron, platform.py
get_nixl_supported_devices)."""


def engines(args: AppArgs) -> dict[str, AppArgs]:
    """One engine's arguments for each deployment of the application, by its name."""
    if args.prefill is None:
        return {ENGINE: args}
    return {DECODE: _decode(args, args.prefill), PREFILL: _prefill(args, args.prefill)}


class SideChannels(NamedTuple):
    """The TCP ports of an application's engines on a node (serve_app.engine.side_channel)."""

    first: int
    slots: int
    """Room for engines: twice the replicas, as an update starts new ones beside the old."""
    ports: int
    """Of each engine; vLLM adds the data-parallel rank to the first."""

    @property
    def all(self) -> range:
        return range(self.first, self.first + self.slots * self.ports)


def side_channels(first: int, parts: Iterable[AppArgs]) -> SideChannels:
    """Those of a prefill and a decode engine, from the port `first` on."""
    parts = list(parts)
    ports = max(int(part.engine.get("data_parallel_size") or 1) for part in parts)
    return SideChannels(first, 2 * sum(part.scaling.most for part in parts), ports)


class EngineOf(NamedTuple):
    """One engine of a config file."""

    application: str
    label: str
    """The application's name, and the deployment's if there are two: `llama decode`."""
    deployment: str
    args: AppArgs


def engines_of(document: Document) -> Iterator[EngineOf]:
    """Every engine of a file."""
    for _, application in document.applications():
        parts = engines(application.args)
        for deployment, args in parts.items():
            label = application.name if len(parts) == 1 else f"{application.name} {deployment}"
            yield EngineOf(application.name, label, deployment, args)


def _decode(args: AppArgs, prefill: Prefill) -> AppArgs:
    role = "kv_consumer"
    if prefill.fallback == "decode" and _backend(args) == "neuron":
        # A kv_consumer builds no prefill graphs; kv_both builds those of both phases.
        role = "kv_both"
    engine = {**args.engine, "kv_transfer_config": _kv_transfer_config(args, prefill, role)}
    return args.model_copy(update={"prefill": None, "engine": engine})


def _prefill(args: AppArgs, prefill: Prefill) -> AppArgs:
    merged = {**args.engine, **prefill.engine}
    engine = {name: value for name, value in merged.items() if value is not None}
    engine["kv_transfer_config"] = _kv_transfer_config(args, prefill, "kv_producer")
    return args.model_copy(
        update={
            "prefill": None,
            "engine": engine,
            "instance": prefill.instance or args.instance,
            "resources": prefill.resources or args.resources,
            "scaling": prefill.scaling,
            "limits": prefill.limits,
            "env": {**args.env, **prefill.env},
        }
    )


def _kv_transfer_config(args: AppArgs, prefill: Prefill, role: str) -> dict[str, Any]:
    transfer, backend = prefill.transfer, _backend(args)
    default = "UCX" if backend == "cpu" else "LIBFABRIC"
    return {
        "kv_connector": transfer.connector,
        "kv_role": role,
        "kv_buffer_device": _BUFFER[backend],
        # A KV cache that does not arrive, because the prefill engine died, is computed anew.
        "kv_load_failure_policy": "recompute" if prefill.fallback == "decode" else "fail",
        "kv_connector_extra_config": {
            "backends": [transfer.backend or default],
            "kv_lease_duration": transfer.lease_s,
        },
    }


def _backend(args: AppArgs) -> str:
    return choose_backend(args)[0]
