"""How good the techniques are, and what they cost, on the demo world."""
