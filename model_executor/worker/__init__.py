"""Workers: history pool, packed batches, the model runner, and encoding and decoding tasks."""
