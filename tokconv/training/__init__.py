"""One trial: losses, the training step, the loop, checkpoints, workers, and what a step costs."""
