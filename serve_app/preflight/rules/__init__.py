"""The rules, by topic. Importing this package registers them all."""

from serve_app.preflight.case import RULES, Rule

__all__ = ["RULES", "Rule"]
