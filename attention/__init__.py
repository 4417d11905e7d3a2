"""What the cross-attention sees of a prompt, and how two prompts' tokens belong together."""
