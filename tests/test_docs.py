"""What the docs show is true: their commands run, at a small size, and the README stays short."""

import re
import shutil
from pathlib import Path

import docs_pages
import pytest
from llm_server import serve
from typer.exceptions import TyperException

PAGES = docs_pages.guide_pages()


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory):
    """A folder in which the README's commands were run, on 1,000 of the tutorial's texts."""
    folder = tmp_path_factory.mktemp("readme")
    [maker] = [block for block in docs_pages.read_blocks(PAGES[0]) if block.title == "make_texts.py"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("make_texts.py").write_text(maker.body, encoding="utf-8")
        docs_pages.run_line(["python", "make_texts.py"])
        docs_pages.run_page(docs_pages.ROOT / "README.md")
    return folder


def test_the_readmes_commands_run(readme_folder):
    assert (readme_folder / "report.html").stat().st_size > 10_000
    assert (readme_folder / "release" / "model.safetensors").exists()


def test_the_tutorial_runs_from_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    docs_pages.run_page(PAGES[0])
    assert (tmp_path / "release" / "SHA256SUMS").exists()


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_a_guide_page_run(page, readme_folder, tmp_path, monkeypatch):
    shutil.copytree(readme_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page.stem != "llm_judges":
        docs_pages.run_page(page)
        return
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    with serve() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        docs_pages.run_page(page)


@pytest.mark.parametrize("page", sorted(docs_pages.ROOT.glob("docs/*.md")), ids=lambda page: page.stem)
def test_the_commands_of_every_page_exist(page):
    blocks = docs_pages.read_blocks(page)
    files = {block.title for block in blocks}
    for block in blocks:
        if block.language == "sh":
            for words in block.lines():
                docs_pages.check_line(words, files)


@pytest.mark.parametrize("page", [docs_pages.ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_no_command_hides_from_these_tests(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"^ +(?:phf|torchrun) .*", text, re.MULTILINE), "write it into a ```sh fence"


def test_an_option_that_does_not_exist_is_found():
    with pytest.raises(TyperException, match="--num-smaples"):
        docs_pages.check_line(["phf", "evaluate", "runs/mle", "--num-smaples", "4"])
    with pytest.raises(AssertionError, match="no such command: phf corpus built"):
        docs_pages.check_line(["phf", "corpus", "built", "texts.jsonl"])


def test_the_readme_has_at_most_700_words():
    assert len((docs_pages.ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
