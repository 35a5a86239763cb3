"""Compressors inside other models: one module per model."""
