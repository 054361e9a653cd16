"""Which viruses the hits of a run are: lineages from the nearest viral proteins, as deep as can be told."""
