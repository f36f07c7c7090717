"""What lies in a folder that is named as a source: its files, the splits they belong to, and what is not read of it."""

import errno
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phf.corpus.rows import LeftOut
from phf.errors import PHFError
from phf.files import explain_storage, find_local, read_json

_COMPRESSIONS = ("", ".gz", ".zst")
JSONL_SUFFIXES = tuple(f".{kind}{ending}" for kind in ("jsonl", "ndjson") for ending in _COMPRESSIONS)
TABLE_SUFFIXES = tuple(f".{kind}{ending}" for kind in ("csv", "tsv") for ending in _COMPRESSIONS)
RECORD_SUFFIXES = (*JSONL_SUFFIXES, *TABLE_SUFFIXES, ".parquet", ".arrow")
"""How the name of a file of records ends, in small or capital letters."""

OTHER = "other"
"""What stands for a split where files of no split lie beside those of one."""

_MAX_OTHERS = 10  # for each file of records: beyond that the folder is rather one of texts
_UNREADABLE = "cannot be read"
_HELD_OUT = {
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SPLITS = {"train": "train", "training": "train", **_HELD_OUT}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])")
_SHARD = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*")

NamedFile = tuple[str, Path]
"""A file with its name relative to the folder, `/` between parts."""


@dataclass(frozen=True)
class SourceFolder:
    """The files of a folder that are read, sorted by code point, and what is left out.

    Attributes:
        holds_records: they are files of records; otherwise each is a text.
    """

    files: list[NamedFile]
    left_out: list[LeftOut]
    holds_records: bool


def is_record_file(name: str) -> bool:
    """Whether a name is that of a file of records."""
    return name.lower().endswith(RECORD_SUFFIXES)


def find_files(folder: Path) -> tuple[list[NamedFile], list[LeftOut]]:
    """Regular files below a folder, and what else is there: hidden files, pipes, loops, what cannot be read. Links are followed."""
    local = find_local(folder)
    files, left_out = _walk(local) if local is not None else _list_remote(folder)
    return sorted((_spell(name), path) for name, path in files), [
        LeftOut(_spell(name), reason) for name, reason in sorted(left_out)
    ]


def _spell(name: str) -> str:
    """Bytes of a name that are no UTF-8 are spelled `\\udc..`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _walk(folder: Path) -> tuple[list[NamedFile], list[tuple[str, str]]]:
    files: list[NamedFile] = []
    left_out: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    pending = [("", folder)]
    while pending:
        name, path = pending.pop()
        try:
            status = path.stat()  # of what is behind all links
            is_folder = stat.S_ISDIR(status.st_mode)
            # In the order that a stack wants: of two names of one folder the lower one is read.
            inside = sorted(path.iterdir(), reverse=True) if is_folder else []
        except OSError as error:
            reason = "a link to itself" if error.errno == errno.ELOOP else f"{_UNREADABLE} ({error.strerror})"
            left_out.append((name, reason))
            continue
        identity = (status.st_dev, status.st_ino)
        if is_folder and identity in seen:
            left_out.append((name, "a folder that is read under another name"))
        elif is_folder:
            seen.add(identity)
            left_out += [
                (f"{name}/{other.name}".lstrip("/"), "hidden") for other in inside if other.name[0] == "."
            ]
            pending += [
                (f"{name}/{other.name}".lstrip("/"), other) for other in inside if other.name[0] != "."
            ]
        elif stat.S_ISREG(status.st_mode):
            files.append((name, path))
        else:
            left_out.append((name, "no regular file"))
    return files, left_out


def _list_remote(folder: Path) -> tuple[list[NamedFile], list[tuple[str, str]]]:
    files: list[NamedFile] = []
    hidden: dict[str, str] = {}
    with explain_storage(folder):
        found = [(path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()]
    for name, path in found:
        if match := re.match(r"(?:[^/.][^/]*/)*\.[^/]*", name):
            hidden[match[0]] = "hidden"
        else:
            files.append((name, path))
    return files, list(hidden.items())


def open_folder(folder: Path, spec: str, splits: Sequence[str] = ()) -> SourceFolder:
    """Choose what is read of a folder. Where it holds records, other files are left out; splits are never thrown together.

    Args:
        spec: as the user named the folder, for errors.
        splits: those to read; by default all there is, if that is one.

    Raises:
        PHFError: there are something cannot be read; there are several splits and none is chosen, or one that is not there; a saved data set is not whole.
    """
    files, left_out = find_files(folder)
    if unreadable := next((row for row in left_out if row.reason.startswith(_UNREADABLE)), None):
        raise PHFError(f"{folder / unreadable.place} {unreadable.reason}; make it readable, or move it away")
    records = [file for file in files if is_record_file(file[0])]
    if records:
        others = [name for name, _ in files if not is_record_file(name)]
        if len(others) > _MAX_OTHERS * len(records):
            raise PHFError(
                f"source '{spec}' holds {len(others):,} other files beside {len(records):,} of records ({records[0][0]}); "
                "name those of records, or a folder of the others alone"
            )
        left_out += [LeftOut(name, "no file of records") for name in others]
        records, stale = _keep_listed(records, files)
        left_out += stale
    groups = _group_by_split(records or files, files, bool(records))
    chosen = _choose_splits(groups, bool(records), spec, splits)
    left_out += [
        LeftOut(name, f"of split {split}")
        for split in groups
        if split not in chosen
        for name, _ in groups[split]
    ]
    return SourceFolder(sorted(file for split in chosen for file in groups[split]), left_out, bool(records))


def _keep_listed(records: list[NamedFile], files: list[NamedFile]) -> tuple[list[NamedFile], list[LeftOut]]:
    """Of a data set that `datasets` saved the Arrow files that it lists; the others are of its cache."""
    stale: list[LeftOut] = []
    for name, path in files:
        if PurePosixPath(name).name != "state.json":
            continue
        listed = _read_state(path, name.removesuffix("state.json"))
        if missing := listed - {name for name, _ in records}:
            raise PHFError(f"{path} lists {min(missing)}, which is not there; copy the data set again")
        beside = PurePosixPath(name).parent
        dropped = {
            record
            for record, _ in records
            if PurePosixPath(record).parent == beside
            and record.lower().endswith(".arrow")
            and record not in listed
        }
        stale += [LeftOut(record, "not listed in state.json") for record in sorted(dropped)]
        records = [record for record in records if record[0] not in dropped]
    return records, stale


def _read_state(path: Path, prefix: str) -> set[str]:
    state = read_json(path)
    try:
        return {prefix + entry["filename"] for entry in state["_data_files"]}
    except (TypeError, KeyError):
        raise PHFError(
            f"{path} lists no data files, as 'save_to_disk' writes them; save the data set again"
        ) from None


def _group_by_split(
    chosen: list[NamedFile], files: list[NamedFile], holds_records: bool
) -> dict[str, list[NamedFile]]:
    """Files by their split, sorted; those of no split under `OTHER`."""
    saved = {
        str(PurePosixPath(name).parent)
        for name, _ in files
        if PurePosixPath(name).name == "dataset_dict.json"
    }
    groups: dict[str, list[NamedFile]] = {}
    for file in chosen:
        split = (
            _find_split(file[0], saved) if holds_records else _SPLITS.get(file[0].partition("/")[0].lower())
        )
        groups.setdefault(split or OTHER, []).append(file)
    return dict(sorted(groups.items()))


def _find_split(name: str, saved: set[str]) -> str | None:
    """The split of a file of records: its folder in a saved data set, or what its name says on the Hugging Face Hub."""
    for parent in PurePosixPath(name).parents:
        if parent.name and str(parent.parent) in saved:
            return parent.name
    if match := _SHARD.fullmatch(name):
        return match[1]
    words = _WORD.findall(name.lower())
    return _SPLITS[words[-1]] if words else None


def _choose_splits(
    groups: dict[str, list[NamedFile]], holds_records: bool, spec: str, wanted: Sequence[str]
) -> Sequence[str]:
    counts = ", ".join(f"{split} (files: {len(groups[split]):,})" for split in groups)
    if unknown := [split for split in wanted if split not in groups]:
        raise PHFError(f"source '{spec}' has no split '{unknown[0]}'; it has {counts or 'no files'}")
    named = groups.keys() - {OTHER}
    # A folder of texts may well have a folder `test` of its own; it is a split only beside others.
    are_apart = len(named) > 1 or (holds_records and len(groups) > 1 and named != {"train"})
    if are_apart and not wanted:
        first = "train" if "train" in groups else min(named)
        raise PHFError(
            f"source '{spec}' holds several splits: {counts}; name the one to read, as {spec}:{first}, or several, to be "
            f"one text, as {spec}:{','.join(groups)}"
        )
    return list(wanted) or list(groups)
