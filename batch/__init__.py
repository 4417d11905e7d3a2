"""Edit a folder of pictures: a workflow of the pack's, run over a manifest, on Ray."""
