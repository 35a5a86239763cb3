"""Compressors inside the models of other libraries, one module per model class."""
