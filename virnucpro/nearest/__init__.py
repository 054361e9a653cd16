"""The nearest viral and the nearest cellular protein of a query: one kind of evidence for reads and for genes."""
