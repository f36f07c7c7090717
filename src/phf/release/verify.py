"""Is a release what it says it is? The folder's files, then what plain transformers makes of them, beside the run itself.

Nothing is written into the folder. The check that could pass for want of trying (is `<|bad|>` ever written?) is run once
more with the guard switched off.
"""

import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from phf.config.release import ForgetConfig
from phf.config.train import parse_spec
from phf.errors import PHFError
from phf.evaluate.pages import PageReader
from phf.files import Place, read_json, write_json
from phf.records import Progress
from phf.release import checks, plain
from phf.release.checks import Finding, Known
from phf.release.folder import PROBES, SUMS_FILE, check_files, edit_run, list_files
from phf.release.record import ReleaseRecord, read_record
from phf.train.run import Run

NUM_TEXTS = 64
"""Held-out documents that are read; fewer where the vocabulary is large (`MAX_LOGITS`)."""
PAGE_TOKENS, PROMPT_TOKENS = 128, 8
MAX_LOGITS = 1 << 25
NUM_PROMPTS = 16
BATCH_SIZE = 32
"""Samples that transformers writes at once; a batch goes on until its longest sample has ended."""


def verify_release(
    folder: Place,
    *,
    run: Run | None = None,
    num_samples: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Check a release; gives each check as soon as it is done.

    Args:
        run: what it was made from; without it the logits written down in phf.json are all there is to compare with.
        num_samples: texts drawn from the release, and from the run.

    Raises:
        PHFError: the folder is no release, or `run` is not its run.
    """
    folder = Path(folder)
    if not (folder / SUMS_FILE).is_file():
        read_record(folder)  # whether it is a release at all
    faults = check_files(folder)
    yield from (Finding(fault.partition(" ")[0], "FAILED", fault) for fault in faults)
    if faults:
        yield Finding("the rest", "not shown", "files that were changed are not loaded")
        return
    record = read_record(folder)
    yield Finding("files", "ok", f"{len(list_files(folder))} files are those of SHA256SUMS")
    known = know(folder, record, run)
    yield checks.check_record(known)
    yield checks.check_names(known)
    yield from checks.check_settings(known)
    yield from checks.check_tokenizer(known)
    yield checks.check_strings(known)
    yield checks.check_rows(known)
    pages, prompts, source = _choose_texts(known)
    with tempfile.TemporaryDirectory(prefix="phf-") as place:
        texts = _spell_control(known)
        request = {
            "folder": str(folder.resolve()),
            "texts": texts,
            "pages": pages,
            "prompts": prompts,
            "num_greedy": checks.GREEDY_TOKENS,
            "num_samples": num_samples,
            "batch_size": BATCH_SIZE,
            # As many control tokens as text tokens, like a run's own, within the context.
            "max_new_tokens": min(
                2 * record.sampling.max_new_tokens, record.config.data.context - len(known.prefix)
            ),
            "seed": seed,
        }
        try:
            answer, logits = _ask_plain(request, Path(place), progress)
        except PHFError as error:
            yield Finding("plain transformers", "FAILED", str(error))
            return
    yield checks.check_shape(known, answer)
    yield checks.check_reach(known, texts, answer["texts"])
    yield checks.check_logits(known, pages, logits, source)
    yield checks.check_greedy(known, prompts, answer)
    yield from checks.check_suppression(known, answer)
    yield checks.check_texts(known, answer)
    yield checks.check_scores(known, answer, num_samples, seed, progress)


def know(folder: Path, record: ReleaseRecord, run: Run | None) -> Known:
    """What a release is held against; the run is edited once more, as phf.json says.

    Raises:
        PHFError: it is of another run.
    """
    known = Known(folder, record)
    if run is None:
        return known
    if run.id != record.run.id:
        raise PHFError(
            f"{run.folder} is not the run of {folder}, which was made from {record.run.name} "
            f"({record.run.id}); give that one with --run"
        )
    step = run.resolve_step(record.run.step)
    methods = [parse_spec(ForgetConfig, spec, "phf.json: forget") for spec in record.specs]
    return replace(known, run=run, step=step, edited=edit_run(run, step, methods))


def _choose_texts(known: Known) -> tuple[list[list[int]], list[str], str]:
    """Pages to read (ids) and prompts to continue (texts): held-out text of the run, or texts that come with phf."""
    probes = known.record.probe
    if known.run is None or known.edited is None:
        return [probe.ids for probe in probes], list(PROBES), "the texts that phf.json names"
    tokenizer, separator = known.edited.tokenizer, list(known.prefix[1:])
    try:
        data = known.run.data()
    except PHFError as error:
        return (
            [probe.ids for probe in probes],
            list(PROBES),
            f"the texts of phf.json (held-out ones: {error})",
        )
    reader = PageReader.of(data)
    count = max(1, min(NUM_TEXTS, MAX_LOGITS // (PAGE_TOKENS * tokenizer.vocab_size)))
    read = [reader.read(int(document)) for document in reader.held_out_documents(seed=0)[:NUM_TEXTS]]
    pages = [
        [known.prefix[0], *(token for segment in page.segments for token in (*separator, *segment.tolist()))]
        for page in read
    ]
    prompts = [tokenizer.decode(page.segments[0][:PROMPT_TOKENS]) for page in read[:NUM_PROMPTS]]
    return [page[:PAGE_TOKENS] for page in pages[:count]], prompts, "held-out texts"


def _spell_control(known: Known) -> list[str]:
    """Texts that try to become control tokens."""
    names = dict.fromkeys([*known.record.tokens, *known.deleted])
    frames = ("{}", " {}", "{}{}", "said {}.\n{} and", "<{}>", "x{}", "<|endoftext|>{}")
    return [frame.replace("{}", name) for name in names for frame in frames]


def _ask_plain(
    request: dict[str, Any], place: Path, progress: Progress | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `plain.py` answers, in a process of its own that has no way to phf.

    Raises:
        PHFError: it fails; with the last line of what it said.
    """
    write_json(place / "request.json", request)
    command = [sys.executable, "-I", plain.__file__, str(place / "request.json"), str(place)]
    with (
        (place / "stderr").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=place) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                name, _, counts = line.rstrip("\n").partition("\t")
                if progress is not None and counts:
                    done, total = map(int, counts.split("\t"))
                    progress(f"plain transformers: {name}", done, total)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        with (place / "stderr").open() as errors:
            last = deque((line.strip() for line in errors if line.strip()), maxlen=1)
        raise PHFError(f"it does not load or write: {last[0] if last else f'exit code {process.returncode}'}")
    return read_json(place / "answer.json"), load_file(place / "logits.safetensors")
