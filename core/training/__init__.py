"""The life of a stage: set, loop, checkpoints, scores."""
