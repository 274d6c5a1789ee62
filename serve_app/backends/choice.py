"""Which back end runs a configuration that does not say."""

from __future__ import annotations

from serve_app.config import AppArgs
from serve_app.neuron.instances import instances
from serve_app.neuron.stacks import release, stacks


def choose_backend(args: AppArgs) -> tuple[str, str]:
    """The back end's name and why it is that one."""
    if args.backend != "auto":
        return args.backend, f"backend {args.backend}: the configuration says so"
    if args.instance is None:
        return "cpu", "backend cpu: no instance is named"
    instance = instances().get(args.instance)
    family = instance.family if instance else args.instance.partition(".")[0]
    nxdi = {name for s in stacks() if s.backend == "nxdi" for name in s.families}
    native = {name for s in stacks() if s.backend == "neuron" for name in s.families}
    if family not in nxdi | native:
        return "nxdi", "backend nxdi: nothing else is known of this instance"
    if family not in native:
        return "nxdi", f"backend nxdi: the native plugin does not run on {family}"
    if family not in nxdi or family == "trn3":
        return "neuron", f"backend neuron: {family} is what the native plugin is made for"
    extra = args.engine.get("additional_config")
    keys = extra if isinstance(extra, dict) else {}
    if "neuron_config" in keys:
        return "neuron", "backend neuron: additional_config holds neuron_config"
    if args.prefill is not None or args.engine.get("kv_transfer_config") is not None:
        return "neuron", "backend neuron: only the native plugin transfers KV caches"
    newest = max((release(s.sdk) for s in stacks() if s.backend == "nxdi"), default=(0,))
    if args.stack.sdk and release(args.stack.sdk) > newest:
        return "neuron", f"backend neuron: SDK {args.stack.sdk} has no NxDI any more"
    return "nxdi", f"backend nxdi: the native plugin is Beta, and {family} has both"
