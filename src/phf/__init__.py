"""Pretrain language models with human feedback."""
