"""ComfyUI's side: all that imports ComfyUI and is no node."""
