"""Delivery of the record to MLflow and Weights & Biases."""
