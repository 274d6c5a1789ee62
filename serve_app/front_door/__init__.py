"""The front door: every model behind one `/v1`. No Ray here: pure data, and an ASGI app."""

from serve_app.front_door.app import Decision, FrontDoor, Gate
from serve_app.front_door.directory import (
    NOT_RESPONDING,
    READY,
    STALE_S,
    Directory,
    Loading,
    Report,
    Target,
    Unknown,
)

__all__ = [
    "NOT_RESPONDING",
    "READY",
    "STALE_S",
    "Decision",
    "Directory",
    "FrontDoor",
    "Gate",
    "Loading",
    "Report",
    "Target",
    "Unknown",
]
