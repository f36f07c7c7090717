"""The metrics, one file each; `phf.evaluate.suite` lists them."""
