"""The biology: from sequence files to units of kept reading frames. No torch, no HDF5."""
