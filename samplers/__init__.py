"""Sampling: what a denoiser is, which noise levels to visit, and the loop over an edited path."""
