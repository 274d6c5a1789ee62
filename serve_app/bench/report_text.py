"""Numbers as people read them."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """`12.3 ms`, `1.23 s`."""
    if value is None:
        return "-"
    return f"{figure(value * 1000)} ms" if value < 0.9995 else f"{figure(value)} s"


def figure(value: float | None) -> str:
    """Three digits, or all of those before the point: `0.0123`, `12.3`, `12,345`."""
    if value is None:
        return "-"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    text = f"{value:#.3g}" if value else "0"
    return f"{float(text):.6f}".rstrip("0").rstrip(".") if "e" in text else text.rstrip(".")


def percent(share: float) -> str:
    """`0 %`, `0.4 %`, `12 %`; what is not all is never shown as 100 %."""
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    value = min(share * 100, 99.9)
    return f"{value:.1f} %" if value < 10 or value > 99 else f"{value:.0f} %"


def dollars(value: float | None) -> str:
    """`$12.30`; below a dollar three digits: `$0.0421`."""
    if value is None:
        return "-"
    return f"${value:,.2f}" if value >= 0.995 or value == 0 else f"${figure(value)}"
