"""Trials on Ray: the Tune function, the TorchTrainer, and what they report."""
