"""Which viruses the hits of a run are: lineages from the nearest viral proteins, as deep as can be told."""

RANKS = ("realm", "kingdom", "phylum", "class", "order", "family", "genus", "species")
"""From the top down."""
