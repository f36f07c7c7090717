"""phf.json: all that is known of where a release comes from, without the paths of the machine it was made on."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from phf.config import SamplingConfig
from phf.errors import PHFError
from phf.files import hash_json
from phf.records import FORMAT_VERSION, Identity
from phf.release.edited import Edited
from phf.results import EVALUATION_FILE, Evaluation, encode, parse_json, read_evaluation, to_json
from phf.train.run import Run

PROVENANCE = (
    "corpus",
    "reward_model",
    "tokenizer",
    "segment_ends",
    "good",
    "threshold",
    "epochs",
    "num_parameters",
)
"""What of run.json is taken as it is, beside the versions of the libraries."""


def build_record(
    run: Run, step: int, edited: Edited, *, license: str, probe: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of phf.json (docs/release.md has the fields). The same run gives the same record: it holds no date."""
    evaluation = read_run_evaluation(run, step)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "phf_version": version("phf"),
        "license": license,
        "run": {
            "name": run.name,
            "id": identify_run(run),
            "step": step,
            "tokens_seen": step * run.tokens_per_step,
        },
        "objective": run.config.objective.model_dump(mode="json"),
        "config": run.config.model_dump(mode="json"),
        "provenance": {key: run.record.get(key) for key in PROVENANCE}
        | {"versions": run.record.get("versions")},
        "judges": list_judges(run, evaluation),
        "good_line": run.record["good"]["value"],
        "segments": run.config.segments,
        "tokens": {edited.name(token): token for token in (edited.tokenizer.control.end, *edited.control)},
        "prefix": [edited.name(token) for token in edited.prefix],
        "suppressed": [edited.name(token) for token in edited.suppressed],
        "tokenizer_hash": edited.tokenizer.identity.weights_hash,
        "forget": edited.forget,
        "sampling": choose_sampling(run, evaluation).model_dump(mode="json"),
        "evaluation": _choose_measured(evaluation) if evaluation is not None else None,
        "probe": list(probe),
    }
    cleaned: dict[str, Any] = hide_paths(record)
    cleaned["config"]["corpus"] = _last_part(run.config.corpus)  # a relative path tells as much
    if run.config.start is not None:
        cleaned["config"]["start"]["run"] = _last_part(run.config.start.run)
    return cleaned


def identify_run(run: Run) -> str:
    """What tells a run from all others."""
    return str(run.record.get("id") or hash_json(run.record)[:16])


def read_run_evaluation(run: Run, step: int) -> Evaluation | None:
    """The run's evaluation, if it is of this step."""
    path = run.folder / EVALUATION_FILE
    evaluation = read_evaluation(path) if path.exists() else None
    return evaluation if evaluation is not None and evaluation.step == step else None


def _choose_measured(evaluation: Evaluation) -> dict[str, JsonValue]:
    """What of an evaluation is taken: all that the card shows, and no text of the corpus or of a prompt."""
    found = encode(evaluation)
    return {key: found[key] for key in ("step", "notes", "measures", "measurements")}


def choose_sampling(run: Run, evaluation: Evaluation | None) -> SamplingConfig:
    """The settings the run was measured with, else the defaults, cut to what the model can read."""
    if evaluation is not None:
        return parse_json(evaluation.config["sampling"], SamplingConfig, f"{run.folder}/{EVALUATION_FILE}")
    room = run.config.data.context - 2  # a page starts with two ids at most
    return SamplingConfig(max_new_tokens=min(128, room), min_new_tokens=min(10, room))


def list_judges(run: Run, evaluation: Evaluation | None) -> list[JsonValue]:
    """Role and identity of each judge of the evaluation; without one, of the reward model that annotated."""
    if evaluation is not None:
        return [to_json(judge) for judge in evaluation.judges]
    identity = Identity.from_json(run.record["reward_model"])
    return [{"role": "annotator", "identity": identity.to_json(), "slug": identity.slug}]


_PATH = re.compile(
    r"""(?<![\w.~/\\-])                                  # not inside a word, such as a Hub id
        (?: [a-z][a-z0-9+.-]*:// | ~?/ | \.{1,2}/ | [A-Za-z]:[\\/] | \\\\ )
        [^\s"'`<>|()\[\]{},;*]+""",
    re.VERBOSE,
)
_STARTS_LIKE_A_PATH = re.compile(
    r"^(?:[a-z0-9.+-]+:)?(?:[a-z][a-z0-9+.-]*://|~?/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)"
)


def hide_paths(value: Any) -> Any:
    """A JSON value with each path and URL cut to its last part: folders tell who made something, and where.

    `/home/ann/corpora/mails` becomes `mails`, `lexicon:~/words.txt` becomes `lexicon:words.txt`; Hub ids stay.
    """
    if isinstance(value, dict):
        return {hide_paths(key): hide_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if (
        _STARTS_LIKE_A_PATH.match(value) and "\n" not in value and ": " not in value
    ):  # with spaces in it or not
        head = value[: value.index(":") + 1] if re.match(r"^[a-z0-9.+-]{2,}:(?!//)", value) else ""
        return head + _last_part(value)
    head, colon, tail = value.rpartition(":")
    if "/" in tail and (head in ("lexicon", "jsonl") or Path(tail).exists()):  # relative to where we are
        return head + colon + _last_part(tail)
    return _PATH.sub(lambda match: _last_part(match[0]), value)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "…"


def check_no_paths(folder: Path, run: Run) -> None:
    """The last guard: no file of words that is to be published names this machine's folders.

    Raises:
        PHFError: one does.
    """
    places = {
        Path.home(),
        run.folder.resolve(),
        Path(run.config.corpus).absolute(),
        Path.cwd(),
        folder.resolve(),
    }
    names = {f"{place}/" for place in places if len(place.parts) > 1}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".md", ".py", ".sh", ".txt") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            for name in names:
                if name in text:
                    raise PHFError(
                        f"{path.name} of the release would name the folder {name} of this machine; please report it"
                    )
