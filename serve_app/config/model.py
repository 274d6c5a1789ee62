"""The typed `args:` of an application."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from serve_app.config.access import Access
from serve_app.config.faults import Faults
from serve_app.config.prefill import Prefill
from serve_app.config.sections import (
    Artifacts,
    EngineArguments,
    Environment,
    Health,
    Limits,
    Model,
    Resources,
    Scaling,
    Stack,
    Startup,
    Strict,
)


class AppArgs(Strict):
    """`args:` of one application: one model, its engine, and how it is served."""

    backend: Literal["auto", "cpu", "nxdi", "neuron"] = Field(
        default="auto",
        description="What runs the model: `cpu` = vLLM on the processor; `nxdi` = vLLM's plugin "
        "over NeuronX Distributed Inference (inf2, trn1, trn2); `neuron` = the native plugin "
        "(trn2, trn3). Default `auto`: by `instance`; without one, `cpu`.",
    )
    instance: str | None = Field(
        default=None,
        description="EC2 instance type that a replica runs on, for example inf2.8xlarge. "
        "Needed for `nxdi` and `neuron`.",
    )
    stack: Stack = Field(default=Stack(), description="Pins of the Neuron software.")
    artifacts: Artifacts = Field(default=Artifacts(), description="Compiled graphs.")
    model: Model = Field(description="Which weights, and the name that clients use.")
    engine: EngineArguments = Field(
        default_factory=dict,
        description="Arguments of `vllm serve` under vLLM's own names (max_model_len, "
        "max_num_seqs, enable_auto_tool_choice, ...). What is absent keeps vLLM's default.",
    )
    resources: Resources = Field(default=Resources(), description="What one replica takes.")
    scaling: Scaling = Field(default=Scaling(), description="How many replicas.")
    prefill: Prefill | None = Field(
        default=None,
        description="Disaggregation: engines of their own for prompts. Default: none, one engine "
        "does both.",
    )
    limits: Limits = Field(default=Limits(), description="Queueing and refusal.")
    access: Access = Field(default=Access(), description="API keys and quotas.")
    startup: Startup = Field(default=Startup(), description="How a replica starts.")
    health: Health = Field(default=Health(), description="How faults are found.")
    env: Environment = Field(
        default_factory=dict,
        description="Environment of the replica. A value may be ${NAME}: it is read where the "
        "replica runs and shows in no status, log or dashboard. Use that for secrets.",
    )

    @model_validator(mode="after")
    def _counted(self) -> AppArgs:
        if (self.access.keys or self.access.usage) and self.engine.get("disable_log_stats"):
            message = "vLLM counts no tokens then, and 'access' goes by its counts"
            raise Faults([("engine", f"'disable_log_stats': {message}", "remove it")])
        return self

    @model_validator(mode="after")
    def _one_transfer(self) -> AppArgs:
        both = (self.engine, self.prefill.engine) if self.prefill else ()
        if any("kv_transfer_config" in engine for engine in both):
            message = "'kv_transfer_config' follows from prefill"
            raise Faults([("prefill", message, "set prefill.transfer instead")])
        return self
