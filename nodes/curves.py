"""A curve of ComfyUI's Curve Editor as the weight of an edit over the path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from comfy_api.input import CurveInput
from comfy_api.latest import io

from ..core.edit import WeightCurve
from .pictures import curve_plot
from .support import tell

POINTS = 257
"""At how many places a curve is looked at before it is used."""


def curve_input(weight: str) -> io.Input:
    """The optional socket for a curve: ComfyUI draws curves in its Curve Editor only.

    A socket's `display_name` goes before every translation, so its label is in `locales/`.
    """
    return io.Custom("CURVE").Input(
        "weight_curve",
        optional=True,
        tooltip=f"A curve from ComfyUI's Curve Editor, {weight}. Left is full noise, right the "
        "clean picture; top is all of it, bottom nothing.",
        extra_dict={"forceInput": True},
    )


def weight_of(curve: Any, start: float, end: float) -> WeightCurve | None:
    """The factor that a CURVE is at each fraction of the schedule; None without a curve.

    Rounded, because a cubic between two points of one height is off by 1e-16, and full weight,
    which is exactly 1, needs no model call.

    Args:
        start, end: the window of the edit.
    Raises:
        ValueError: it is no curve, leaves 0 to 1, or is 0 in the whole window.
    """
    if curve is None:
        return None
    try:
        drawn = CurveInput.from_raw(curve)
        values = drawn.interp_array(np.linspace(0, 1, POINTS)).round(6)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("weight_curve is no curve; connect Curve Editor") from None
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("weight_curve leaves the range from 0 to 1; draw it between them")

    def weight(fraction: float) -> float:
        return round(drawn.interp(fraction), 6)

    if not any(map(weight, np.linspace(start, end, POINTS))):
        raise ValueError(
            f"weight_curve is 0 between {start:g} and {end:g}, where the edit works; raise it there"
        )
    return weight


def told_curve(
    node: type[io.ComfyNode], curve: WeightCurve | None, weight: Callable[[float], float]
) -> dict[str, Any] | None:
    """What an edit with a curve shows: its weight over the path.

    Args:
        weight: at a fraction of the schedule, as the edit has it.
    """
    if curve is None:
        return None
    values = [weight(x) for x in np.linspace(0, 1, POINTS)]
    return tell(node, f"Weight over the path: up to {max(values):.2g}", curve_plot(values))
