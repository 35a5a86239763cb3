"""Compressors inside the models of other libraries: one module per family of vision-language models."""
