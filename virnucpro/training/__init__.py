"""Training of the bundled model: genomes, fragments, the recipe, calibration and figures."""
