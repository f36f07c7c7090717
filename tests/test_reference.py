"""docs/settings.md and docs/cli.md say what the code says."""

import importlib.util
from pathlib import Path

import pytest

from phf.config.train import SamplingConfig

DOCS = Path(__file__).parents[1] / "docs"


def load_generator():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings", "cli"])
def test_the_reference_is_what_the_code_says(page, monkeypatch):
    expected = getattr(load_generator(), f"write_{page}")()
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == expected, f"docs/{page}.md is stale; run: make reference"
    monkeypatch.setenv("COLUMNS", "40")
    assert getattr(load_generator(), f"write_{page}")() == expected, "the terminal's width plays no part"


def test_every_setting_of_sampling_is_there():
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert all(f"| `sampling.{name}` |" in text for name in SamplingConfig.model_fields)
