"""Critic-free figures on plain tensors; `tokconv.evaluation.evaluator` fixes samples, seeds and sizes around them."""

from tokconv.evaluation.metrics.fidelity import Fidelity
from tokconv.evaluation.metrics.wasserstein import projections, sliced_wasserstein, sorted_projections

__all__ = ["Fidelity", "projections", "sliced_wasserstein", "sorted_projections"]
