"""Replays public traces, to hold the planner to what others published: `python -m benchmarks.replay placement|queue`."""
