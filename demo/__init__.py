"""The demo world: a renderer with ground truth, and the small diffusion model trained on it."""
