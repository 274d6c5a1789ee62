"""How a new version takes over: beside the old one, or in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.config import ConfigError, Finding, Severity
from serve_app.manifests.pools import Pool


@dataclass(frozen=True)
class Upgrade:
    """`upgradeStrategy` of the RayService."""

    type: str
    """NewCluster or None, as KubeRay spells them."""
    reason: str
    """One sentence."""


def devices_needed(pools: Iterable[Pool]) -> int:
    """Neuron devices of all pods at their most."""
    return sum(pool.devices * pool.most_pods for pool in pools)


def upgrade(pools: Iterable[Pool], quota: int | None) -> Upgrade:
    """NewCluster starts a whole second cluster first, so both must fit (KubeRay, RayService
    upgrade strategies).

    Raises:
        ConfigError: not even one fits the quota.
    """
    needed = devices_needed(pools)
    if needed == 0:
        return Upgrade("NewCluster", "no chips are needed: a second cluster starts beside the old")
    if quota is None:
        return Upgrade(
            "None",
            f"cluster.quota is not given, so two clusters of {needed} devices may not fit: a new "
            "image or pod takes effect when the RayService is deleted and applied again",
        )
    if quota < needed:
        message = f"the service needs {needed} Neuron devices and the quota is {quota}"
        mend = "raise the quota, or lower scaling"
        raise ConfigError([Finding("cluster", Severity.ERROR, message, mend, "cluster.quota")])
    if quota >= 2 * needed:
        return Upgrade(
            "NewCluster", f"two clusters of {needed} devices fit the quota of {quota}: no gap"
        )
    return Upgrade(
        "None",
        f"two clusters of {needed} devices do not fit the quota of {quota}: a new image or pod "
        "takes effect when the RayService is deleted and applied again",
    )
