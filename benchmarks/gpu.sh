#!/usr/bin/env bash
# On a bare machine with one GPU, Python 3.12, PyTorch 2.11 and transformers 5, without network: missing wheels lie in .whl/
# (fill it where pip works: python3 -m pip download --no-deps ... -d .whl pydantic pydantic-core annotated-types
# typing-inspection sentencex zstandard pycodestyle threadpoolctl scipy, and phf itself
# by python3 -m pip wheel --no-deps -w .whl .). Prints parity with the CPU and tokens/s with MFU. Three minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
PYTHONPATH="$site" PYTHONUNBUFFERED=1 python3 benchmarks/gpu.py "$@"
