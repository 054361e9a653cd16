"""What suits this machine: ``virnucpro profile`` measures it, ``virnucpro plan`` foresees a run."""
