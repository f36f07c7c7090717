"""From text to batches: tokenizer, token cache, blocks, phases of training."""
