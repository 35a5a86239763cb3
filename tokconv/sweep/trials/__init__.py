"""Trials on Ray: the Tune function, the TorchTrainer, and their reports."""
