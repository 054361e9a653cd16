"""A run from what is asked to its results: the loop, the record, looking at a run and mending it."""
