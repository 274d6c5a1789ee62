"""The section `access`: who may ask, how much, and where that is counted."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from serve_app.config.faults import Faults
from serve_app.config.sections import Strict


class Access(Strict):
    """API keys, their quotas, and the record of use. Write it alike in every application."""

    keys: str | None = Field(
        default=None,
        description="File of API keys, as `neuron-serve keys` writes it; read anew when it "
        "changes. Default: none, everyone may ask. May hold ${NAME}.",
    )
    required: bool = Field(
        default=False,
        description="Without `keys` this configuration is refused. For production.",
    )
    counts: str = Field(
        default="memory",
        pattern=r"^(memory|(\$\{\w+\})|(async\+)?rediss?://.+)$",
        description="Where quotas are counted: `memory` = one process of the Ray cluster, "
        "forgotten when that ends; redis://host:port/database = shared and lasting. May be "
        "${NAME}, and must be where the URL holds a password.",
    )
    usage: str | None = Field(
        default=None,
        description="Directory of the record of use: a file of JSON lines per day and replica, a "
        "line per request. Default: none. It must exist. May hold ${NAME}.",
    )

    @model_validator(mode="after")
    def _as_said(self) -> Access:
        if self.required and self.keys is None:
            mend = "make a key: neuron-serve keys new --name NAME --file FILE, and set keys: FILE"
            raise Faults([("required", "keys are required, and there are none", mend)])
        if "://" in self.counts and urlsplit(self.counts).password:
            mend = "write counts: ${NAME}, and set NAME where the replica runs"
            raise Faults([("counts", "it holds a password, in clear text", mend)])
        return self
