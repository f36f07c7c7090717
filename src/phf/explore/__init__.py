"""The local web app: documents, samples, scores, a playground."""
