"""Delivers the record of a sweep to MLflow and Weights & Biases."""
