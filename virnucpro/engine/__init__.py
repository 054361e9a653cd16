"""From a unit's strings to packed batches."""
