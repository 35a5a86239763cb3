"""One trial: losses, the training step, the loop, checkpoints, workers, and the cost of a step."""
