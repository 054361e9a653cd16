"""The ordered stages of a run, each with ``run`` and, where it works on units, ``pending``."""
