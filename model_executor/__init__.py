"""Everything that touches tensors: models, workers, executors."""
