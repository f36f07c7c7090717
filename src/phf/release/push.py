"""`phf push`: a release onto the Hugging Face Hub, private unless asked otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from phf.control import BAD_TOKEN
from phf.errors import PHFError
from phf.release.card import UNKNOWN
from phf.release.folder import SUMS_FILE, check_files, list_files
from phf.release.record import read_record

_BY_THE_HUB = ".gitattributes"


@dataclass(frozen=True)
class Upload:
    """What a push would send.

    Attributes:
        has_bad: whether `<|bad|>` is still in the vocabulary.
        files: name and size in bytes of each.
    """

    folder: Path
    repo: str
    is_private: bool
    license: str
    has_bad: bool
    files: tuple[tuple[str, int], ...]

    def describe(self) -> list[str]:
        """A line for each file, then what it comes to."""
        size = sum(size for _, size in self.files)
        lines = [f"{size:>14,}  {name}" for name, size in self.files]
        visibility = "private" if self.is_private else "PUBLIC"
        total = f"{len(self.files)} files, {size / 1e6:,.1f} MB, licence {self.license} -> {self.repo} ({visibility})"
        warning = (
            [f"{BAD_TOKEN} is in this folder: who turns suppression off has bad mode"] if self.has_bad else []
        )
        return [*lines, total, *warning]


def plan_upload(folder: str | Path, repo: str, *, is_public: bool = False) -> Upload:
    """Check that a release may leave, and list what would; touches no network.

    Raises:
        PHFError: it is no release, was changed since, has no licence, or the repository cannot be called so.
    """
    path = Path(folder)
    record = read_record(path)
    if faults := check_files(path):
        raise PHFError(f"{path} is not as it was released: {faults[0]}; release the run again")
    if record.license == UNKNOWN:
        raise PHFError(
            f"{path} has no licence; release the run again with --license, such as --license apache-2.0"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PHFError(
            f"'{repo}' cannot name a repository ({' '.join(str(error).split())}); give USER/NAME"
        ) from None
    names = [*list_files(path), SUMS_FILE]
    return Upload(
        path,
        repo,
        not is_public,
        record.license,
        BAD_TOKEN in record.tokens,
        tuple((n, (path / n).stat().st_size) for n in names),
    )


def push_release(upload: Upload, *, api: HfApi | None = None) -> str:
    """Make the repository if it is not there, and upload in one go; gives its URL.

    The Hub keeps the visibility of a repository that exists, and its files: both must be as planned, or a model would be
    published that was meant to be private, or bad mode's rows stay beside a release without them.

    Raises:
        PHFError: the Hub cannot be reached or refuses; or the repository is not as planned.
    """
    api = api or HfApi()
    try:
        url = api.create_repo(upload.repo, private=upload.is_private, exist_ok=True)
        info: Any = api.model_info(upload.repo)
        _check_repository(upload, bool(info.private), [file.rfilename for file in info.siblings or []])
        api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=[name for name, _ in upload.files],
            commit_message=f"Release {upload.folder.name} (phf)",
        )
    except PHFError:
        raise
    except Exception as error:  # the client has many kinds, and its HTTP library others
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PHFError(
            f"the Hub did not take {upload.repo}: {reason}; check the network, and 'hf auth login'"
        ) from None
    return str(url)


def _check_repository(upload: Upload, is_private: bool, files: list[str]) -> None:
    if upload.is_private and not is_private:
        raise PHFError(
            f"{upload.repo} exists and is public; give --public, or the name of another repository"
        )
    ours = {name for name, _ in upload.files}
    if others := sorted(set(files) - ours - {_BY_THE_HUB}):
        raise PHFError(
            f"{upload.repo} holds {others[0]}{f' and {len(others) - 1} more files' if len(others) > 1 else ''}, which are not of "
            "this release; delete them there, or give the name of another repository"
        )
