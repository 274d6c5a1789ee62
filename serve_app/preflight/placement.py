"""Rules about where a prefill and a decode engine run: nodes, cores, EFA, ports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from serve_app.backends import engines, side_channels
from serve_app.config import Severity
from serve_app.preflight.case import NATIVE, Pair, Side, Trip, pair_rule

_TUTORIAL = "aws-neuron-sdk vllm-neuron/docs/tutorials/tutorial-di-1p1d-xpyd.md"
_NIXL = "vLLM 0.24 and 0.29 kv_connector/v1/nixl"
_PORT, _HOST = "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST"
_SHM = "FI_EFA_ENABLE_SHM_TRANSFER"


def on_one_node(one: Side, other: Side) -> bool:
    """Whether a replica of each fits one machine."""
    a, b = one.plan.target, other.plan.target
    if a is None or b is None:
        return True  # the processor has no cores that are handed out whole
    return a.instance.name == b.instance.name and a.cores + b.cores <= a.instance.cores(a.lnc)


def nodes(pair: Pair) -> dict[str, int]:
    """How many instances of which type hold all replicas, the largest placed first."""
    replicas = sorted(
        (
            (target.cores, target.instance.name, target.instance.cores(target.lnc))
            for side in pair.sides
            if (target := side.plan.target) is not None
            for _ in range(side.args.scaling.most)
        ),
        reverse=True,
    )
    free: list[tuple[str, int]] = []
    for cores, name, there in replicas:
        spot = next((i for i, (n, left) in enumerate(free) if n == name and left >= cores), None)
        if spot is None:
            free.append((name, there - cores))
        else:
            free[spot] = (name, free[spot][1] - cores)
    return dict(Counter(name for name, _ in free))


@pair_rule(
    "pd-plan",
    Severity.NOTE,
    "How many instances all replicas take",
    "aws-neuron-sdk about-neuron/arch/neuron-hardware; disaggregated-inference.md Topologies",
    NATIVE,
)
def plan(pair: Pair) -> Iterator[Trip]:
    targets = [side.plan.target for side in pair.sides]
    if any(t is None or t.cores > t.instance.cores(t.lnc) for t in targets):
        return  # core-count says so
    wanted = nodes(pair)
    there = sum(
        count * next(t.instance.cores(t.lnc) for t in targets if t and t.instance.name == name)
        for name, count in wanted.items()
    )
    used = sum(s.args.scaling.most * t.cores for s, t in zip(pair.sides, targets, strict=True) if t)
    idle = there - used
    if sum(wanted.values()) == 1 and not idle:
        return
    kinds = " and ".join(
        f"{side.args.scaling.most} {side.name} x {side.plan.target.cores}"
        for side in pair.sides
        if side.plan.target
    )
    machines = ", ".join(f"{count} {name}" for name, count in wanted.items())
    message = f"{kinds} cores take {machines}"
    message += f", where {idle} of {there} cores stay idle" if idle else ""
    mend = "raise num_replicas, or let another model have the rest" if idle else ""
    if sum(wanted.values()) > 1:
        mend = "keep them in one subnet and placement group, and open the security group to itself"
    yield Trip(message, mend, "prefill.scaling")


@pair_rule(
    "pd-efa",
    Severity.ERROR,
    "KV caches travel between nodes over EFA",
    f"{_TUTORIAL} EFA / LIBFABRIC prerequisites; karpenter-provider-aws instance-types.md",
    NATIVE,
)
def efa(pair: Pair) -> Iterator[Trip]:
    if sum(nodes(pair).values()) < 2:
        return
    by_name = {s.plan.target.instance.name: s for s in pair.sides if s.plan.target}
    for name, side in by_name.items():
        assert side.plan.target is not None
        interfaces = side.plan.target.instance.efa_interfaces
        if interfaces:
            continue
        path = "prefill.instance" if side is pair.prefill and pair.section.instance else "instance"
        message = f"the engines lie on several {name}, which has no EFA interface"
        severity = None
        if interfaces is None:
            message = f"the engines lie on several {name}, of whose EFA interfaces nothing is known"
            severity = Severity.WARNING
        mend = "take trn2.48xlarge, or engines that fit one instance"
        yield Trip(message, mend, path, severity)


@pair_rule(
    "pd-shared-memory",
    Severity.ERROR,
    "On one node libfabric leaves shared memory alone",
    f"{_TUTORIAL} Prepare your environment: requests can produce inaccurate output",
    NATIVE,
)
def shared_memory(pair: Pair) -> Iterator[Trip]:
    if not on_one_node(*pair.sides):
        return
    for side in pair.sides:
        value = side.plan.env.get(_SHM)
        if value is not None and value != "0":  # None: no LIBFABRIC, another rule's matter
            message = f"{_SHM} is {value!r}: two engines of one node then give wrong text"
            yield Trip(message, "remove it: it is set to 0", pair.at(side, "env", _SHM))
            return


@pair_rule(
    "pd-side-channel",
    Severity.ERROR,
    "Each engine of a node has a side channel of its own, at an address that others reach",
    f"{_TUTORIAL} Port conflicts on single-node; {_NIXL}/pull_scheduler.py request_finished "
    "(remote_host, remote_port)",
)
def side_channel(pair: Pair) -> Iterator[Trip]:
    decode, prefill = pair.sides
    neighbours = [(decode, prefill)]
    neighbours += [(side, side) for side in pair.sides if side.args.scaling.most > 1]
    for one, other in neighbours:
        port = one.plan.env.get(_PORT)
        if port is not None and port == other.plan.env.get(_PORT) and on_one_node(one, other):
            message = f"{_PORT} is {port} for several engines of one node"
            mend = "remove it: each engine takes its own from prefill.transfer.port on"
            yield Trip(message, mend, pair.at(other, "env", _PORT))
            break
    for side in pair.sides:
        host = side.plan.env.get(_HOST)
        if host in ("0.0.0.0", "localhost", "127.0.0.1", "::", "::1"):
            message = f"{_HOST} {host} is also what decode is told to connect to: it would find"
            severity = None if sum(nodes(pair).values()) > 1 else Severity.WARNING
            mend = "remove it: each engine takes its node's address"
            yield Trip(f"{message} itself", mend, pair.at(side, "env", _HOST), severity)
            return


_TAKEN = (
    ("Ray's GCS", 6379, 6379),
    ("Ray's dashboard", 8265, 8265),
    ("HAProxy's statistics", 8404, 8404),
    ("HAProxy's metrics", 9101, 9101),
    ("Ray's workers", 10002, 19999),
    ("Serve's replicas", 30000, 31000),
    ("Serve's replicas (gRPC)", 40000, 41000),
)
"""Ray 2.60 _private/ray_constants.py, scripts/scripts.py (start), serve/_private/constants.py."""


@pair_rule(
    "pd-ports",
    Severity.ERROR,
    "The side channels' ports are nobody else's",
    f"serve_app/engine/side_channel.py; {_NIXL}/base_scheduler.py side_channel_port + DP rank; "
    "Ray 2.60 _private/ray_constants.py, serve/_private/constants.py",
)
def port_range(pair: Pair) -> Iterator[Trip]:
    sides = (side.args for side in pair.sides)
    own = side_channels(pair.section.transfer.port, sides).all
    path, mend = "prefill.transfer.port", "set prefill.transfer.port so that they are clear of it"
    what = f"the side channels take the ports {own[0]} to {own[-1]}"
    if own[-1] > 65535:
        lowest = 65536 - len(own)
        yield Trip(f"{what}, and 65535 is the last", f"set it to {lowest} or less", path)
        return
    taken = list(_TAKEN)
    for other in pair.file.models if pair.file else ():
        if other.name == pair.name:
            break  # the later of two applications is told
        if other.args.prefill is not None:
            theirs = side_channels(
                other.args.prefill.transfer.port, engines(other.args).values()
            ).all
            taken.append((f"application {other.name}", theirs[0], theirs[-1]))
    if pair.file:
        http = pair.file.http_options.port
        taken.append(("http_options.port", http, http))
    for name, first, last in taken:
        if first <= own[-1] and own[0] <= last:
            place = str(first) if first == last else f"{first} to {last}"
            yield Trip(f"{what}, and {place} is of {name}", mend, path)
            return
