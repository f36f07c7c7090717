"""Shapes in annotations are enforced while tests run, for the rooms that compute on tensors."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook(["phf.objectives", "phf.lm"], "beartype.beartype")
