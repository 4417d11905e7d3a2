"""The edits: each technique changes one of the four things that a step of the path has."""
