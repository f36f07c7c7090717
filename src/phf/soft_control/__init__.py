"""Control as inference on language models: promises, returns that are asked for, soft values (docs/control_as_inference.md)."""
