"""Running the processes of jobs on one node: start, watch, limit, stop, collect."""
