"""Every check of a machine, in the order in which they are looked at."""

from __future__ import annotations

from serve_app.doctor import host, neuron, ray, software
from serve_app.doctor.check import CHECKS, look_at

__all__ = ["CHECKS", "host", "look_at", "neuron", "ray", "software"]
