"""The walk along a path: what is predicted at a step, the solvers, the loop."""
