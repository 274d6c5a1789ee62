"""Kubernetes quantities: 500m, 1.5, 16Gi, 1e3."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_FORM = re.compile(
    r"^([+-]?(?:\d+\.?\d*|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d{1,3})?$"
)
_UNITS = {
    **{unit: Decimal(1024) ** (index + 1) for index, unit in enumerate(("Ki", "Mi", "Gi", "Ti"))},
    **{"Pi": Decimal(1024) ** 5, "Ei": Decimal(1024) ** 6, "": Decimal(1)},
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")},
    **{unit: Decimal(1000) ** (index + 1) for index, unit in enumerate("kMGTPE")},
}
GIB = Decimal(1024) ** 3


def quantity(value: Any) -> Decimal | None:
    """The number; None if it is no quantity (apimachinery pkg/api/resource/quantity.go)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    found = _FORM.match(str(value))
    if found is None:
        return None
    number, suffix = Decimal(found[1]), found[2] or ""
    if suffix in _UNITS:
        return number * _UNITS[suffix]
    return number * Decimal(10) ** int(suffix[1:])


def amount(value: Any) -> Decimal:
    """The number; 0 where there is none or it is no quantity."""
    return quantity(value) or Decimal(0)


def gib(value: Decimal) -> str:
    """ "118.3 GiB"."""
    return f"{value / GIB:.1f} GiB"


def plain(value: Decimal) -> str:
    """A number as a person writes it: 31.85, 16."""
    return f"{value.normalize():f}"
