"""The demo world: a renderer with ground truth, and the small diffusion model trained on it."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The finished weights, in the layout of diffusers."""

FLOW_TOKENS = 24
"""How many tokens the flow model reads at least; no caption of the demo world has more."""
