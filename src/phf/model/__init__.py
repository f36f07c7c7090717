"""Language models as Hugging Face classes, their attention, their residual stream."""
