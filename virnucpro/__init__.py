"""VirNucPro tells which sequences of a metagenome are viral."""

__version__ = "0.1.0"
