"""The vocabulary: paths, queries, steps, edits. Pure torch; imports nothing else of the pack."""
