"""Numbers, intervals and tables as Markdown."""

from collections.abc import Mapping, Sequence


def show_number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def show_percent(value: float | None) -> str:
    """A share in per cent, or a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def show_interval(cell: Mapping, digits: int = 3, sign: bool = True) -> str:
    """A mean with its interval.

    >>> show_interval({"mean": 0.25, "low": 0.125, "high": 0.5}, digits=2)
    '+0.25 [+0.12, +0.50]'
    """
    shown = show_number(cell["mean"], digits, sign)
    if cell["low"] is None or cell["high"] is None:
        return shown
    return f"{shown} [{show_number(cell['low'], digits, sign)}, {show_number(cell['high'], digits, sign)}]"


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
