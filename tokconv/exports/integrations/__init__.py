"""A compressor inside somebody else's model."""
