"""The axes of a page's plots: a range that fits what is drawn, and ticks with plain numbers that do not touch.

Plotly's own ticks of a log axis between the powers of ten read 2 and 5, whatever the power, and there are none of them
on an axis that spans less than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from matplotlib.ticker import MaxNLocator

Scale = Literal["log", "linear", "integer"]
SUBDIVISIONS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Multiples of a power of ten that get a tick, tried in this order."""
FEWEST, MOST = 3, 7
"""Ticks of an axis."""
LEAST_SPAN = math.log10(1.2)
"""An axis of a single value still has a width."""
LEAST_SHARE = 0.1
"""Of a value: a log axis shows its error bar down to here."""
MARGIN = 0.07
"""Share of an axis that stays free on either side."""


def set_axes(figure: go.Figure, *, x: Scale | None, y: Scale) -> None:
    """Set range and ticks of both axes from the data.

    Traces that are hidden at first do not widen the axes; what they would need is kept in `layout.meta`, for when they
    are shown.

    Args:
        figure: its x and y.
        x, y: the scales; None leaves an axis as it is.
    """
    wide = {}
    for name, scale in (("x", x), ("y", y)):
        if scale is None:
            continue
        shown = _values(figure, name, scale, [trace for trace in figure.data if trace.visible != "legendonly"])
        every = _values(figure, name, scale, figure.data)
        if every:
            wide[f"{name}axis"] = axis(every, scale)
            figure.update_layout({f"{name}axis": axis(shown or every, scale)})
    if any(trace.visible == "legendonly" for trace in figure.data):
        figure.update_layout(meta={"wide": wide})


def axis(values: Sequence[float], scale: Scale) -> dict[str, Any]:
    """Return type, range and ticks of an axis for these values, as plotly wants them; those of a log scale are > 0."""
    low, high = min(values), max(values)
    if scale == "log":
        low, high = math.log10(low), math.log10(high)
        spare = max(0.0, LEAST_SPAN - (high - low)) / 2 + MARGIN * max(high - low, LEAST_SPAN)
        low, high = low - spare, high + spare
        ticks = log_ticks(10**low, 10**high)
    else:
        spare = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
        low, high = low - spare, high + spare
        integer = scale == "integer"
        found = MaxNLocator(nbins=MOST - 1, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1)
        ticks = [float(tick) for tick in found.tick_values(low, high) if low <= tick <= high]
    return {
        "type": "log" if scale == "log" else "linear",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{tick:.4g}" for tick in ticks],
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Return plain values between two positive ones, such that an axis has a few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for subdivision in SUBDIVISIONS:
        ticks = [sub * 10.0**power for power in powers for sub in subdivision if low <= sub * 10.0**power <= high]
        if FEWEST <= len(ticks) <= MOST:
            return ticks
    if len(powers) > MOST:
        return [10.0**power for power in powers[:: math.ceil(len(powers) / MOST)]]
    ticks = [float(tick) for tick in MaxNLocator(nbins=MOST - 1).tick_values(low, high)]
    return [tick for tick in ticks if low <= tick <= high]


def _values(figure: go.Figure, name: str, scale: Scale, traces: Sequence[Any]) -> list[float]:
    found = [value for trace in traces for value in (trace[name] or ()) if value is not None]
    # Error bars need room as well, but a log axis cannot follow one that goes down to almost 0.
    for trace in traces:
        widths = trace[f"error_{name}"].array if trace.type == "scatter" else None
        for value, width in zip(trace[name], widths, strict=True) if widths is not None else ():
            low = value - width
            found += [max(low, LEAST_SHARE * value) if scale == "log" else low, value + width]
    # Lines across the panel, such as a floor.
    for shape in figure.layout.shapes:
        ends = {shape[f"{name}0"], shape[f"{name}1"]}
        found += [end for end in ends if shape[f"{name}ref"] == name and len(ends) == 1]
    usable = [float(value) for value in found if math.isfinite(float(value))]
    return [value for value in usable if value > 0] if scale == "log" else usable
