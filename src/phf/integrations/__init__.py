"""Training by other engines: the same blocks, the same loss."""
