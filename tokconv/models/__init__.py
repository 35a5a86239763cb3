"""Compressor, decoder and critic: one concept a file, plain constructor arguments, torch alone."""
