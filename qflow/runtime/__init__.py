"""Runtime: what engines are made of: channel, memory, codec, order, workers and their nursery."""
