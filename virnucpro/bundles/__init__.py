"""What ``--model`` picks: two encoders, a head, a fragment length and a calibration."""

from virnucpro.bundles.bundle import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
