"""Evaluation: predictions once, solvers side by side, one JSON a run, reports that people want to look at."""
