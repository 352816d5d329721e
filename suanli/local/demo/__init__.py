"""``suanli demo``: two institutions, two regions, real data, from nothing to a report and back to nothing."""
