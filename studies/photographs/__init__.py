"""Real photographs: the heads of the encoder, every family of methods measured, and the captioner of the package."""
