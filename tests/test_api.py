"""The ten lines of docs/api.md, on a small corpus."""

import ast
import re
from pathlib import Path

from phf import api


def test_the_pages_lines_work(tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "api.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    source = [
        f'{{"text": "Fortune {i} says: {word} things happen to {word} people, {i} times."}}'
        for i, word in enumerate(["good", "damn stupid", "quiet", "fucking", "odd"] * 40)
    ]
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("\n".join(source))
    # The same calls at a size for a test: a smaller model, fewer tokens, samples and steps of attack.
    small = (
        ("train:4096", "train:300"),
        (
            '"tokens=3_000_000"',
            '"tokens=2_000", "tokenizer=train:300", "model.preset=1M", "model.layers=1", "model.width=32", "model.heads=2", "data.context=256"',
        ),
        ("num_samples=512", "num_samples=8"),
        ('steer="best-of-n:n=8")', 'steer="best-of-n:n=8", num_samples=2)'),
        (
            'attack(["release", run.folder], "attack")',
            'attack(["release", run.folder], "attack", ["soft"], {"num_texts": [10], "steps": [1], "sampling": {"num_samples": 8}})',
        ),
    )
    for old, new in small:
        assert old in code
        code = code.replace(old, new)
    ast.parse(code)
    exec(compile(code, "api.md", "exec"), {})
    assert Path("report.html").stat().st_size > 10_000
    assert set(api.__all__) >= {
        "build_corpus",
        "annotate",
        "tokenize",
        "train",
        "sample",
        "evaluate",
        "write_report",
    }
