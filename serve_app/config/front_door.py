"""The typed `args:` of the front door: many models behind one `/v1`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from serve_app.config.access import Access
from serve_app.config.faults import Faults
from serve_app.config.sections import Limits, Scaling, Strict


def _shares(weights: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    faults = []
    for name, shares in weights.items():
        if any(not share >= 0 for share in shares.values()) or not sum(shares.values()) > 0:
            faults.append((name, f"the weights of {name!r} are not shares", "for example 0.9, 0.1"))
    if faults:
        raise Faults(faults)
    return weights


class FrontDoorArgs(Strict):
    """`args:` of the front door. It finds the models by itself."""

    weights: Annotated[dict[str, dict[str, float]], AfterValidator(_shares)] = Field(
        default_factory=dict,
        description="Canary: of a name that several applications serve (`model.aliases`), the "
        "share of the requests that each takes, by application. Default: equal shares.",
    )
    upstream: str = Field(
        default="http://127.0.0.1:8000",
        pattern=r"^http://[^/]+$",
        description="Where Ray Serve listens, as the front door's replicas reach it. Default: "
        "Serve's own port on the same node.",
    )
    access: Access = Field(default=Access(), description="API keys and quotas.")
    limits: Limits = Field(default=Limits(), description="Queueing and refusal.")
    scaling: Scaling = Field(default=Scaling(), description="How many replicas.")
