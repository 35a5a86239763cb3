"""Compressors, decoders and critics: one concept per file, plain constructor arguments, torch alone."""
