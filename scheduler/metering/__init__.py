"""Usage: segments of allocations, their sums, and the metrics that show them."""
