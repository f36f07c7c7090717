"""Models as distributions over texts: opened from any folder, drawn from, and asked what a text's probability is (docs/posterior.md)."""
