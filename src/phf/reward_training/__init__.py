"""Reward models of one's own: labels, training, distillation, how well they agree."""
