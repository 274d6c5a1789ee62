"""Several faults in one field: what a pydantic validator raises so that none is lost."""

from __future__ import annotations


class Faults(ValueError):
    """Each fault is `(key below the field, message, mend)`."""

    def __init__(self, faults: list[tuple[str, str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(message for _, message, _ in faults))
