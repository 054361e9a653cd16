"""What this machine does: ``virnucpro profile`` finds settings, ``plan`` estimates a run, ``benchmark`` measures."""
