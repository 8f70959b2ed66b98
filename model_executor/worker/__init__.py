"""One device's share of the work: history pool, packed batches, model runner."""
