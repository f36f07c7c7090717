"""Pretrain language models with human feedback. The main path in a few calls is `phf.api`."""

__version__ = "0.1.0"
