"""The posterior p0 exp(-score / beta) / Z that feedback methods aim at, and how far each is from it (docs/posterior.md)."""
