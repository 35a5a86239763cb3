"""Critic-free figures on plain tensors; `tokconv.evaluate` fixes samples, seeds and sizes around them."""

from tokconv.metrics.fidelity import Fidelity
from tokconv.metrics.wasserstein import projections, sliced_wasserstein, sorted_projections

__all__ = ["Fidelity", "projections", "sliced_wasserstein", "sorted_projections"]
