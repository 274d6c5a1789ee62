"""Back ends: what a configuration becomes on one kind of processor. Pure data."""

from serve_app.backends.cpu import CpuBackend
from serve_app.backends.plan import Backend, EnginePlan, Machine, this_machine

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CpuBackend(),)}
"""Every back end by the name that `backend:` of a config file uses."""

__all__ = ["BACKENDS", "Backend", "EnginePlan", "Machine", "this_machine"]
