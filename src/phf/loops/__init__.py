"""Rounds in which a model writes, is scored and goes on training on what it wrote, and the lemma behind them (docs/loops.md)."""
