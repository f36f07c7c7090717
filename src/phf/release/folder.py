"""A release: a plain Hugging Face folder that starts in good mode, with its provenance and a hash of every file.

Everything that decides its bytes comes from the run, so the same release twice is the same folder.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from transformers import GenerationConfig

from phf.config.release import Delete, ForgetConfig
from phf.config.train import SamplingConfig
from phf.control import END_TOKEN, GOOD_TOKEN
from phf.errors import PHFError
from phf.files import apply_umask, hash_file, read_json, write_bytes, write_json
from phf.folders import create_beside
from phf.model import lm
from phf.objectives import modes_of
from phf.records import Progress
from phf.release.card import write_card
from phf.release.edited import Edited
from phf.release.examples import write_examples
from phf.release.gguf import write_gguf
from phf.release.record import (
    RECORD_FILE,
    ProbedText,
    PublishedVerdict,
    ReleaseRecord,
    build_record,
    check_no_paths,
    choose_length,
    choose_sampling,
    read_record,
    read_run_evaluation,
    write_record,
)
from phf.tokens.tokenizer import Tokenizer
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMS_FILE = "SHA256SUMS"
PROBES = ("The quick brown fox", "Dear all,", "def main():", "I do not know what you mean by")
"""Texts whose first logits are written down; none is from a corpus, which may not be public."""
NUM_PROBED = 8

_ADDED_BY_THE_HUB = (".gitattributes", ".git/", ".cache/")


@dataclass(frozen=True)
class Release:
    """A release folder, read again."""

    folder: Path
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    record: ReleaseRecord

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids that a page starts with."""
        return self.record.prefix_ids

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that must not be written."""
        return self.record.suppressed_ids


def write_release(
    run: Run,
    folder: Path,
    *,
    forget: Sequence[ForgetConfig] = (),
    license: str = "unknown",
    step: int | None = None,
    gguf: bool = False,
    verdicts: Sequence[PublishedVerdict] = (),
    progress: Progress | None = None,
) -> Path:
    """Write a run's model as a plain Hugging Face folder, whole or not at all.

    Args:
        folder: new, empty, or a release, which is replaced.
        forget: how bad mode is forgotten, in this order.
        license: the identifier that the Hub knows (`apache-2.0`, `mit`, ...).
        step: which checkpoint (default: the last).
        gguf: also as one file for llama.cpp (`phf.release.gguf`).
        verdicts: on the run's evaluation, for the card.

    Raises:
        PHFError: the folder holds something else; no such checkpoint; a method does not fit the run; its data is gone
            (only where a method needs texts).
    """
    check_place(folder)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise PHFError(
            f"--license '{license}' is not an identifier of the Hub; give one such as apache-2.0, mit, cc-by-4.0, other"
        )
    step = run.resolve_step(step)
    tell = progress or (lambda description, done, total: None)
    tell("releasing", 0, 3)
    with _make_folder(folder) as partial:
        edited = edit_run(run, step, forget)
        tell("releasing", 1, 3)
        sampling = choose_sampling(run, read_run_evaluation(run, step))
        write_model(edited, partial, sampling, choose_length(sampling, run.config.data.context))
        tell("releasing", 2, 3)
        probe = probe_model(edited)
        record = build_record(run, step, edited, license=license, probe=probe, verdicts=verdicts)
        write_record(partial, record)
        if gguf:
            write_gguf(partial)
        write_card(partial, record, examples=write_examples(partial, record))
        check_no_paths(partial, run)
        write_sums(partial)
    tell("releasing", 3, 3)
    return folder


def open_release(folder: str | Path) -> Release:
    """A release folder: its model (evaluation mode, float32), tokenizer and phf.json.

    Raises:
        PHFError: it is not a release, or a file is missing or is not what SHA256SUMS says.
    """
    path = Path(folder)
    record = read_record(path)
    if faults := [fault for fault in check_files(path) if not fault.endswith("does not list it")]:
        raise PHFError(f"{path}/{faults[0]}; release the run again, or see 'phf release verify {path}'")
    return Release(path, lm.load_model(path).eval(), Tokenizer.load(path), record)


def edit_run(run: Run, step: int, forget: Sequence[ForgetConfig]) -> Edited:
    """A run's model as `write_release` publishes it, in memory: of control tokens that it does not write nothing stays.

    Raises:
        PHFError: a method does not fit the run.
    """
    from phf.release.forget import forget_run

    modes = modes_of(run.config.objective)
    writes_tokens = "untagged" in modes
    if not writes_tokens and not any(isinstance(method, Delete) for method in forget):
        forget = (*forget, Delete())
    forgotten = forget_run(run, forget, step=step)
    model, tokenizer = forgotten.model.cpu(), forgotten.tokenizer
    if (
        model.get_input_embeddings().weight.shape[0] > tokenizer.vocab_size
    ):  # padding, which plain engines would draw
        model.resize_token_embeddings(tokenizer.vocab_size)
    control = tokenizer.control
    starts_good = writes_tokens and modes[0] == "good"
    prefix = (control.end, control.good) if starts_good else (control.end,)
    left = [token for token in control.all if token < tokenizer.vocab_size]
    suppressed = tuple(token for token in left if token not in prefix)
    return Edited(model.eval(), _hide_control(tokenizer), prefix, suppressed, forgotten.record, modes[0])


def _hide_control(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a decoder that gives no text for a control token, which no engine knows to leave out: the token
    is not among the added ones, so that no text can reach it."""
    content = json.loads(tokenizer.backend.to_str())
    if content["decoder"] is None or tokenizer.vocab_size <= tokenizer.control.good:
        return tokenizer
    backend = Backend.from_str(tokenizer.backend.to_str())
    left = [token for token in tokenizer.control.all if token < tokenizer.vocab_size]
    skip = [decoders.Replace(str(backend.id_to_token(token)), "") for token in left]
    backend.decoder = decoders.Sequence([*skip, backend.decoder])
    return Tokenizer(backend, tokenizer.control, tokenizer.name)


def write_model(edited: Edited, folder: Path, sampling: SamplingConfig, length: int) -> None:
    """Weights, config, tokenizer and generation settings; `length`: new tokens that may be written (`choose_length`)."""
    model, end = edited.model, edited.tokenizer.control.end
    config = model.config
    config.bos_token_id = config.eos_token_id = end
    config.pad_token_id = None
    config.name_or_path = ""
    if len(edited.control) < len(edited.tokenizer.control.all) and hasattr(config, "control_tokens"):
        del config.control_tokens  # what `phf train --init` reads to keep rows that were learned
    model.generation_config = GenerationConfig(
        **generation_settings(end, sampling, edited.suppressed, length)
    )
    lm.save_model(model, folder)
    good = [GOOD_TOKEN] if len(edited.prefix) == 2 else []
    edited.tokenizer.save(folder, start=(END_TOKEN, *good))
    settings = read_json(folder / "tokenizer_config.json")
    if (context := getattr(config, "max_position_embeddings", None)) is not None:
        settings["model_max_length"] = context
    write_json(folder / "tokenizer_config.json", settings)


def generation_settings(
    end: int, sampling: SamplingConfig, suppressed: Sequence[int], length: int
) -> dict[str, JsonValue]:
    """The content of generation_config.json: how the run was sampled, and what must not be written."""
    settings: dict[str, JsonValue] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,  # left out, it would be 50
        "max_new_tokens": length,
    }
    return settings | ({"suppress_tokens": list(suppressed)} if suppressed else {})


@torch.inference_mode()
def probe_model(edited: Edited) -> list[ProbedText]:
    """The highest logits behind a few texts, by which a release is checked where its run is not at hand."""
    probes = []
    for text in PROBES:
        ids = [*edited.prefix, *edited.tokenizer.encode(text)]
        logits = edited.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        top = logits.topk(min(NUM_PROBED, len(logits)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        probes.append(ProbedText(text, ids, dict(pairs)))
    return probes


def list_files(folder: Path) -> list[str]:
    """Paths of a release's files within its folder, but for SHA256SUMS and what the Hub adds to a copy."""
    paths = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    )
    return sorted(name for name in paths if name != SUMS_FILE and not name.startswith(_ADDED_BY_THE_HUB))


def write_sums(folder: Path) -> None:
    """SHA256SUMS of every file, as `sha256sum -c` reads it."""
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in list_files(folder)]
    write_bytes(folder / SUMS_FILE, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as SHA256SUMS has them.

    Raises:
        PHFError: it is missing or damaged.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        raise PHFError(f"{SUMS_FILE} is missing")
    text = path.read_bytes().decode("utf-8", errors="replace")
    sums: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        found = re.fullmatch("([0-9a-f]{64})  (.+)", line)
        if found is None or found[2] in sums:
            raise PHFError(
                f"{SUMS_FILE} is damaged: line {number} is not a SHA-256, two spaces and a file's name"
            )
        sums[found[2]] = found[1]
    return sums


def check_files(folder: Path) -> list[str]:
    """What is wrong with the files of a release, each fault with the file's name first; empty if they are whole."""
    try:
        sums = read_sums(folder)
    except PHFError as error:
        return [str(error)]
    found = list_files(folder)
    faults = [f"{name} is missing, though {SUMS_FILE} lists it" for name in sorted(sums) if name not in found]
    for name in found:
        if name not in sums:
            faults.append(f"{name} is not of the release: {SUMS_FILE} does not list it")
        elif (folder / name).is_symlink() or (digest := hash_file(folder / name)) != sums[name]:
            what = "is a link" if (folder / name).is_symlink() else f"has SHA-256 {digest[:12]}…"
            faults.append(f"{name} {what}, where {SUMS_FILE} says {sums[name][:12]}…")
    return faults


def check_place(folder: Path) -> None:
    """Refuse a place whose content would be lost: only a release as it was written is replaced.

    Raises:
        PHFError: a file is there, or a folder with something else in it.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise PHFError(f"{folder} is not a folder; choose another with -o")
    if not any(folder.iterdir()):
        return
    if not (folder / RECORD_FILE).is_file() or not (folder / SUMS_FILE).is_file():
        raise PHFError(f"{folder} is not empty and is not a release; choose another folder with -o")
    if faults := check_files(folder):
        raise PHFError(
            f"{folder} was changed since it was released ({faults[0]}); delete it, or choose another folder with -o"
        )


@contextmanager
def _make_folder(out: Path) -> Iterator[Path]:
    """A folder that appears whole, in the place of an earlier release: made within the sibling `.<name>.partial`."""
    out = out.absolute()
    old = out.parent / f".{out.name}.old"
    with create_beside(out, "releasing into") as partial:
        if old.exists() and not out.exists():  # of a process that was killed between the two renames below
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        try:
            yield partial
            apply_umask(partial)
            for path in partial.rglob("*"):  # on disk before the old release is moved away
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            check_place(out)  # as at the beginning: nobody has put anything else there meanwhile
            if out.exists():
                out.rename(old)
            partial.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
