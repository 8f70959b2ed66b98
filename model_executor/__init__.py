"""Models, the workers that run them, and the executors that start and reach workers."""
