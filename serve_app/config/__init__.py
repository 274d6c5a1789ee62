"""The configuration: one Ray Serve config file, typed. Pure data, no side effects."""

from serve_app.config.access import Access
from serve_app.config.document import Document, load, parse_args, parse_front_door_args
from serve_app.config.findings import ConfigError, Finding, Severity
from serve_app.config.front_door import FrontDoorArgs
from serve_app.config.model import AppArgs
from serve_app.config.prefill import Prefill
from serve_app.config.sections import Health, Limits, Model, Resources, Scaling, Startup

__all__ = [
    "Access",
    "AppArgs",
    "ConfigError",
    "Document",
    "Finding",
    "FrontDoorArgs",
    "Health",
    "Limits",
    "Model",
    "Prefill",
    "Resources",
    "Scaling",
    "Severity",
    "Startup",
    "load",
    "parse_args",
    "parse_front_door_args",
]
