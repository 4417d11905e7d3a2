"""Development tools: set-up, the real ComfyUI that tests and the demo run in, workflow twins."""
