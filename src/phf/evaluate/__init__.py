"""Numbers about a trained model; see docs/evaluation.md. Nothing is imported here, so that a metric can be had without the others."""
