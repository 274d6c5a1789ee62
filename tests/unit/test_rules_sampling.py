"""Rules about sampling and asynchronous execution on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import sampling as MODULE  # noqa: N812
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
KEY = "on_device_sampling_config"
HOST: dict[str, Any] = {KEY: None}
CACHE = {"enable_prefix_caching": True, "block_size": 32}
DRAFT = {
    "speculative_config": {"method": "draft_model", "model": "/d", "num_speculative_tokens": 5}
}
EAGLE = {"speculative_config": {"method": "eagle", "model": "/d", "num_speculative_tokens": 5}}
SWITCH = "NEURON_ON_DEVICE_SAMPLING_DISABLED"


def sampling(**keys: Any) -> dict[str, Any]:
    return {"neuron": {KEY: {"dynamic": True, **keys}}}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("sampling-static", {"neuron": {KEY: {"do_sample": True, "top_k": 20}}}, [W]),
    ("sampling-static", {"neuron": {KEY: {}}}, [W]),
    ("sampling-top-k", sampling(global_topk=0), [E]),
    ("sampling-top-k", sampling(global_topk=512), [W]),
    ("sampling-top-k", sampling(global_topk=64, top_k=100), [W]),
    ("sampling-range", sampling(top_p=0, temperature=-1), [W, W]),
    ("sampling-data-parallel", sampling(sampling_dp_degree=3), [W]),
    (
        "sampling-kernel",
        {"instance": "inf2.48xlarge", **sampling(top_k_kernel_enabled=True), "sdk": "2.28"},
        [W],
    ),
    ("sampling-device", {}, [N]),
    ("sampling-logprobs", {"engine": {"max_logprobs": 5}}, [W]),
    (
        "sampling-structured",
        {"engine": {"structured_outputs_config": {"backend": "xgrammar"}}},
        [W],
    ),
    ("sampling-switch", {"env": {SWITCH: "1"}}, [E]),
    ("async-mode", {"neuron": {**HOST, "async_mode": True}}, [E]),
    ("async-mode", {"neuron": {"is_medusa": True, "async_mode": True}}, [E]),
    ("async-mode", {"neuron": {"async_mode": True}, "engine": {**CACHE, **DRAFT}}, [E]),
    ("tensor-capture", {"neuron": {**HOST, "tensor_capture_config": {}}}, [E]),
    ("async-scheduling", {"engine": {"async_scheduling": True}}, [N]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("sampling-static", {}),
    ("sampling-static", sampling()),
    ("sampling-static", {"neuron": HOST}),
    ("sampling-top-k", sampling(global_topk=256, top_k=256)),
    ("sampling-range", sampling(top_p=1.0, temperature=0)),
    ("sampling-data-parallel", sampling(sampling_dp_degree=4)),
    ("sampling-kernel", sampling(top_k_kernel_enabled=True)),
    ("sampling-device", {"neuron": HOST}),
    ("sampling-logprobs", {"engine": {"max_logprobs": 5}, "neuron": HOST}),
    ("sampling-logprobs", {"engine": {"max_logprobs": 0}}),
    (
        "sampling-structured",
        {"engine": {"structured_outputs_config": {"backend": "xgrammar"}}, "neuron": HOST},
    ),
    ("sampling-switch", {"env": {SWITCH: "0"}}),
    ("async-mode", {"neuron": {"async_mode": True}}),
    ("async-mode", {"neuron": {"async_mode": True}, "engine": {**CACHE, **EAGLE}}),
    ("async-mode", {"neuron": {"async_mode": True}, "engine": DRAFT}),
    ("tensor-capture", {"neuron": {"tensor_capture_config": {}}}),
    ("tensor-capture", {"neuron": {**HOST, "tensor_capture_config": {}, "output_logits": True}}),
    ("async-scheduling", {"engine": {"async_scheduling": False}}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(MODULE, TRIP, CLEAN)
