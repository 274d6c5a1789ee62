"""Rules of the native plugin: kv_transfer_config of a single engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve_app.config import Severity
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import architecture, mapping, pooling, transfer

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"
_PATH = "engine.kv_transfer_config"
_ROLES = ("kv_producer", "kv_consumer", "kv_both")
_NIXL = ("NixlConnector", "NeuronNixlConnector")
_CONNECTORS = (*_NIXL, "NeuronDecodeBenchConnector")


@rule(
    "native-transfer-connector",
    Severity.ERROR,
    "KV caches are transferred by NIXL",
    f"{_PLATFORM} _auto_set_neuron_connector_module_path; disaggregated-inference.md",
    NATIVE,
)
def connector(case: Case) -> Iterator[Trip]:
    config = mapping(case, "kv_transfer_config")
    if config is None:
        return
    name, path = config.get("kv_connector"), f"{_PATH}.kv_connector"
    if not name:
        message = "kv_transfer_config names no kv_connector"
        yield Trip(message, f"use {' or '.join(_NIXL)}", path)
    elif name == "NeuronConnector":
        message = "NeuronConnector was of the vLLM 0.9 fork"
        yield Trip(message, "use NeuronNixlConnector", path)
    elif name not in _CONNECTORS and not config.get("kv_connector_module_path"):
        message = f"kv_connector {name!r} is not documented for Neuron"
        yield Trip(message, f"use {' or '.join(_NIXL)}", path, Severity.WARNING)


@rule(
    "native-transfer-role",
    Severity.ERROR,
    "A connector has one of three roles",
    "vLLM config/kv_transfer.py (ValueError)",
    NATIVE,
)
def role(case: Case) -> Iterator[Trip]:
    given = transfer(case)
    if given is not None and given.get("kv_role") not in _ROLES:
        message = f"kv_role is {given.get('kv_role')!r}"
        yield Trip(message, f"use one of {', '.join(_ROLES)}", f"{_PATH}.kv_role")


@rule(
    "native-transfer-device",
    Severity.ERROR,
    "The transfer buffer is device memory, which is spelled cuda",
    f"{_PLATFORM} get_nixl_supported_devices",
    NATIVE,
)
def device(case: Case) -> Iterator[Trip]:
    given = transfer(case)
    if given is None or given["kv_connector"] not in _NIXL:
        return
    now, path = given.get("kv_buffer_device"), f"{_PATH}.kv_buffer_device"
    mend = "set it to cuda, which means the Neuron device here"
    if now is None:
        message = "kv_buffer_device is not set; the platform takes cuda only"
        yield Trip(message, mend, path, Severity.WARNING)
    elif now != "cuda":
        yield Trip(f"kv_buffer_device is {now!r}", mend, path)


@rule(
    "native-transfer-backend",
    Severity.ERROR,
    "NIXL goes over LIBFABRIC (EFA)",
    "aws-neuron-sdk vllm-neuron/docs/guides/features-guide.md Disaggregated inference; "
    "getting-started/setup-guide.md: requires the LIBFABRIC transport",
    NATIVE,
)
def backend(case: Case) -> Iterator[Trip]:
    given = transfer(case)
    if given is None or given["kv_connector"] not in _NIXL:
        return
    extra = given.get("kv_connector_extra_config")
    backends = extra.get("backends") if isinstance(extra, Mapping) else None
    if backends != ["LIBFABRIC"]:
        message = f"backends of NIXL: {backends!r}; AWS documents LIBFABRIC only"
        beside = isinstance(backends, list) and "LIBFABRIC" in backends
        severity = Severity.WARNING if beside else None
        path = f"{_PATH}.kv_connector_extra_config.backends"
        yield Trip(message, "use LIBFABRIC and no other", path, severity)


@rule(
    "native-transfer-window",
    Severity.WARNING,
    "A model with a sliding window needs NeuronNixlConnector",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/disaggregated-inference.md NeuronNixlConnector",
    NATIVE,
)
def window(case: Case) -> Iterator[Trip]:
    given = transfer(case)
    if given is None or case.model is None or not case.model.sliding_window:
        return
    if given["kv_connector"] == "NixlConnector":
        message = "NixlConnector may drop the oldest block of the model's sliding window"
        yield Trip(message, "use NeuronNixlConnector", f"{_PATH}.kv_connector")
    if case.engine("disable_hybrid_kv_cache_manager") is not False:
        message = "vLLM turns the hybrid KV cache manager off beside a connector"
        mend = "set disable_hybrid_kv_cache_manager to false, as AWS's recipes do"
        yield Trip(message, mend, "engine.disable_hybrid_kv_cache_manager")


@rule(
    "native-transfer-pooling",
    Severity.ERROR,
    "A pooling model has no decode phase to split off",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/pooling-models.md",
    NATIVE,
)
def pooled(case: Case) -> Iterator[Trip]:
    if transfer(case) and pooling(case):
        message = f"kv_transfer_config with the pooling model {architecture(case)}".rstrip()
        yield Trip(message, "remove it", _PATH)
