"""Critic-free figures of plain tensors; the modules around it fix the samples, seeds and sizes."""
