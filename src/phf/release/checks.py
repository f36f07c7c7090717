"""The single checks of a release: files, then what plain transformers made of them (`phf.release.verify` runs them).

Every check names the file at fault.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from scipy.special import ndtri
from torch import Tensor

from phf.control import BAD_TOKEN, GOOD_TOKEN, level_tokens
from phf.errors import PHFError
from phf.files import read_json
from phf.generate.target import Target
from phf.objectives import num_levels
from phf.records import Progress
from phf.release.edited import Edited
from phf.release.folder import generation_settings, list_files
from phf.release.record import ReleaseRecord, build_record
from phf.results import encode
from phf.reward_models import load_reward_model, score_samples
from phf.tokens.tokenizer import Tokenizer
from phf.train.run import Run

Outcome = Literal["ok", "FAILED", "not shown"]

LOGIT_TOLERANCE = 1e-5
PROBE_TOLERANCE = 1e-4
"""Of a logit computed on another machine, whose matrix products round otherwise."""
TIE = 1e-4
"""Two logits nearer than this may swap places when a cache rounds otherwise."""
FALSE_ALARM = 1e-3
POWER = 0.8
NUM_PERMUTATIONS = 20_000
GREEDY_TOKENS = 32
COLLINEAR = 1 - 1e-5
"""Cosine from which on two rows count as the same, up to scale."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what; the file's name where a check of a file failed.
        outcome: `not shown` where there was nothing to compare with.
    """

    name: str
    outcome: Outcome
    detail: str


def passed(name: str, detail: str) -> Finding:
    """What was looked at is right."""
    return Finding(name, "ok", detail)


def fault(file: str, what: str) -> Finding:
    """A file is wrong."""
    return Finding(file, "FAILED", f"{file}: {what}")


def not_shown(name: str, why: str) -> Finding:
    """Nothing to compare with."""
    return Finding(name, "not shown", why)


@dataclass(frozen=True)
class Known:
    """What a release is held against.

    Attributes:
        run, step, edited: the run and its model edited once more in memory, if it is here.
    """

    folder: Path
    record: ReleaseRecord
    run: Run | None = None
    step: int = 0
    edited: Edited | None = None

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids that a page starts with."""
        return self.record.prefix_ids

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that must not be written."""
        return self.record.suppressed_ids

    @property
    def end(self) -> int:
        """Id of the end token."""
        return self.record.prefix_ids[0]

    @property
    def deleted(self) -> tuple[str, ...]:
        """Names of control tokens that must be nowhere."""
        levels = level_tokens(num_levels(self.record.config.objective))
        return tuple(name for name in (GOOD_TOKEN, BAD_TOKEN, *levels) if name not in self.record.tokens)


def check_record(known: Known) -> Finding:
    """phf.json is what the run would have in it today; without the run, it leaves no control token unaccounted for."""
    record = known.record
    if BAD_TOKEN in record.tokens and BAD_TOKEN not in (*record.suppressed, *record.prefix):
        return fault("phf.json", f"{BAD_TOKEN} has an id and is not suppressed")
    if known.run is None or known.edited is None:
        return not_shown("phf.json", "give the run with --run to have its contents compared")
    expected = build_record(
        known.run,
        known.step,
        known.edited,
        license=record.license,
        probe=record.probe,
        verdicts=record.verdicts,
    )
    if expected.specs == record.specs:  # their figures may round otherwise on another machine
        expected = replace(expected, forget=record.forget)
    expected = replace(expected, phf_version=record.phf_version, checks=record.checks)
    found = encode(record)
    for key, value in encode(expected).items():
        if value != found[key]:
            return fault("phf.json", f"{key} is not the run's; release again if the run was evaluated since")
    return passed("phf.json", "its contents are the run's")


_NAMES = re.compile(
    r"README\.md|phf\.json|(config|generation_config|tokenizer|tokenizer_config)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|model\.gguf|examples/with_\w+\.(py|sh)"
)


def check_names(known: Known) -> Finding:
    """No file but those that a release is made of: bad mode's rows could lie in any other."""
    for name in list_files(known.folder):
        if not _NAMES.fullmatch(name):
            return Finding(name, "FAILED", f"{name} is no file of a release")
    return passed("names of files", "they are a release's, and no others")


def check_settings(known: Known) -> Iterator[Finding]:
    """generation_config.json, config.json and tokenizer_config.json say what phf.json says, and nothing that runs code."""
    record = known.record
    expected = generation_settings(known.end, record.sampling, known.suppressed, record.max_new_tokens)
    found = _read(known.folder / "generation_config.json")
    yield _compare(
        "generation_config.json", expected, {k: v for k, v in found.items() if k != "transformers_version"}
    )
    config = _read(known.folder / "config.json")
    rows = max(known.record.tokens.values()) + 1
    expected = {"bos_token_id": known.end, "eos_token_id": known.end, "vocab_size": rows, "auto_map": None}
    yield _compare("config.json", expected, {key: config.get(key) for key in expected})
    config = _read(known.folder / "tokenizer_config.json")
    expected = {
        "eos_token": known.record.prefix[0],
        "split_special_tokens": True,
        "chat_template": None,
        "auto_map": None,
    }
    yield _compare("tokenizer_config.json", expected, {key: config.get(key) for key in expected})


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _compare(name: str, expected: dict[str, Any], found: dict[str, Any]) -> Finding:
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            return fault(name, f"{key} is {found.get(key)!r}, where {expected.get(key)!r} belongs")
    return passed(name, ", ".join(f"{key} {value}" for key, value in expected.items() if value is not None))


def check_tokenizer(known: Known) -> Iterator[Finding]:
    """tokenizer.json is the one that phf.json names (and the run's, edited), and starts a text as it should."""
    name = "tokenizer.json"
    try:
        tokenizer = Tokenizer.load(known.folder)
    except PHFError as error:
        yield fault(name, str(error))
        return
    edited = known.edited
    wanted = known.record.tokenizer_hash if edited is None else str(edited.tokenizer.identity.weights_hash)
    if (found := tokenizer.identity.weights_hash) != wanted:
        yield fault(name, f"it is another tokenizer ({str(found)[:12]}…) than this model's ({wanted[:12]}…)")
        return
    start = tokenizer.backend.encode("", add_special_tokens=True).ids
    if start != list(known.prefix):
        yield fault(name, f"a text starts with the ids {start}, not with {list(known.prefix)}")
        return
    yield passed(name, f"{tokenizer.vocab_size:,} ids; a text starts with {''.join(known.record.prefix)}")


def check_strings(known: Known) -> Finding:
    """The names of deleted tokens are in no file that an engine reads."""
    if not known.deleted:
        return passed("deleted names", "no token was deleted")
    for file in list_files(known.folder):
        if file in ("README.md", "phf.json") or file.startswith("examples/"):
            continue  # prose
        content = (known.folder / file).read_bytes()
        for name in known.deleted:
            if name.encode() in content or json.dumps(name).strip('"').encode() in content:
                return Finding(file, "FAILED", f"{file} holds the name {name}, which was deleted")
    return passed("deleted names", f"{', '.join(known.deleted)} in no file but README.md and phf.json")


def check_rows(known: Known) -> Finding:
    """No row or column of any tensor is a deleted token's, at any scale."""
    if known.run is None:
        return not_shown("deleted rows", "what they were is known to the run alone: give it with --run")
    model, control = known.run.load_model(known.step).cpu(), known.run.load_tokenizer(known.step).control
    names = (GOOD_TOKEN, BAD_TOKEN, *level_tokens(control.num_levels))
    ids = [token for name, token in zip(names, control.all, strict=True) if name in known.deleted]
    if not ids:
        return passed("deleted rows", "no token was deleted")
    matrices = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    gone = torch.nn.functional.normalize(torch.cat([matrix.detach()[ids] for matrix in matrices]).double())
    num_tensors = 0
    for path in sorted(known.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                num_tensors += 1
                if (near := _nearest(tensors.get_tensor(key), gone)) > COLLINEAR:
                    return fault(path.name, f"a row of {key} is a deleted token's (cosine {near:.6f})")
    return passed(
        "deleted rows", f"{len(ids)} of the run, at any scale, are in none of {num_tensors} tensors"
    )


def _nearest(tensor: Tensor, rows: Tensor) -> float:
    """The largest |cosine| of some rows [R, D] with a vector along any dimension of a tensor."""
    largest = 0.0
    for dim in range(tensor.ndim):
        if tensor.shape[dim] == rows.shape[1]:
            vectors = torch.nn.functional.normalize(
                tensor.movedim(dim, -1).reshape(-1, rows.shape[1]).double()
            )
            largest = max(largest, float((vectors @ rows.T).abs().max()))
    return largest


def check_shape(known: Known, answer: dict[str, Any]) -> Finding:
    """Embeddings have a row for each id, and none more."""
    used = max(known.record.tokens.values()) + 1
    if answer["rows"] != [used, used] or answer["vocabulary"] != used:
        return fault(
            "model.safetensors",
            f"embeddings have {answer['rows']} rows and the tokenizer {answer['vocabulary']} ids; both must be {used}",
        )
    return passed("plain transformers", f"it loads without phf; one row for each of {used:,} ids, none more")


def check_reach(known: Known, texts: Sequence[str], found: Sequence[Sequence[int]]) -> Finding:
    """Texts that spell control tokens give the prefix, then ids of text alone (the run's, if it is here)."""
    control = set(known.record.tokens.values())
    for text, ids in zip(texts, found, strict=True):
        rest = ids[len(known.prefix) :]
        if tuple(ids[: len(known.prefix)]) != known.prefix or control & set(rest):
            return fault("tokenizer.json", f"the text {text!r} becomes the control ids in {ids}")
        if known.edited is not None and rest != known.edited.tokenizer.encode(text):
            return fault("tokenizer.json", f"the text {text!r} becomes other ids than the run's")
    detail = f"{len(texts)} texts that spell them give none, with add_special_tokens"
    return passed("control tokens in text", detail)


def check_logits(
    known: Known, pages: Sequence[Sequence[int]], logits: dict[str, Tensor], source: str
) -> Finding:
    """The logits are those of the run's model edited once more in memory."""
    if known.edited is None:
        return _check_probe(known, logits)
    largest, num_tokens = 0.0, 0
    with torch.inference_mode():
        for index, page in enumerate(pages):
            own = known.edited.model(input_ids=torch.tensor([page]), use_cache=False).logits[0].float()
            if own.shape != logits[str(index)].shape:
                return fault("model.safetensors", f"logits {tuple(logits[str(index)].shape)}, the run's {tuple(own.shape)}")  # fmt: skip
            largest = max(largest, float((own - logits[str(index)]).abs().max()))
            num_tokens += len(page)
    detail = f"at {num_tokens:,} tokens of {source} they are the run's, edited again: largest difference {largest:.1e}"
    if not largest <= LOGIT_TOLERANCE:
        return fault("model.safetensors", f"logits differ from the run's by {largest:.2g}")
    return passed("logits", detail)


def _check_probe(known: Known, logits: dict[str, Tensor]) -> Finding:
    probes = known.record.probe
    largest = max(
        abs(float(logits[str(index)][-1, token]) - value)
        for index, probe in enumerate(probes)
        for token, value in probe.logits.items()
    )
    if not largest <= PROBE_TOLERANCE:
        return fault("model.safetensors", f"logits differ from those in phf.json by {largest:.2g}")
    return passed(
        "logits",
        f"without the run: {len(probes)} texts have the logits that phf.json wrote down, up to {largest:.1e}; for more give --run",
    )


def check_greedy(known: Known, prompts: Sequence[str], answer: dict[str, Any]) -> Finding:
    """Each token is the most likely one to the run's edited model, behind the tokens before it."""
    if known.edited is None:
        return not_shown("greedy text", "give the run with --run")
    num_tokens = 0
    for text, ids, new in zip(prompts, answer["prompts"], answer["greedy"], strict=True):
        if ids != [*known.prefix, *known.edited.tokenizer.encode(text)]:
            return fault("tokenizer.json", f"the prompt {text!r} becomes other ids than the run's")
        with torch.inference_mode():
            page = torch.tensor([[*ids, *new]])
            logits = known.edited.model(input_ids=page, use_cache=False).logits[0, len(ids) - 1 : -1].float()
            logits[:, list(known.suppressed)] = -torch.inf
        short = logits.max(-1).values - logits.gather(1, torch.tensor(new)[:, None])[:, 0]
        ends = new[-1] == known.end or len(new) == GREEDY_TOKENS
        if not bool((short <= TIE).all()) or not ends or known.end in new[:-1]:
            return fault("model.safetensors", f"greedy text behind {text!r} is not the run's")
        num_tokens += len(new)
    return passed(
        "greedy text", f"{num_tokens} tokens behind {len(prompts)} prompts are the run's, each of them"
    )


def check_suppression(known: Known, answer: dict[str, Any]) -> Iterator[Finding]:
    """What must not be written is not, and would be."""
    names = ", ".join(known.record.suppressed)
    if not known.suppressed:
        gone = ", ".join(known.deleted) or BAD_TOKEN
        yield passed("suppression", f"nothing to suppress: {gone} has no id")
        return
    blocked = set(known.suppressed)
    hits, free_hits = (
        sum(not blocked.isdisjoint(ids) for ids in answer.get(key, [])) for key in ("samples", "unsuppressed")
    )
    if hits:
        yield fault("generation_config.json", f"{hits} of {len(answer['samples'])} samples hold {names}")  # fmt: skip
        return
    yield passed("suppression", f"{names} in none of {len(answer['samples'])} samples")
    if free_hits:
        yield passed(
            "suppression off",
            f"the same check fails as it should: {free_hits} of {len(answer['unsuppressed'])} samples hold {names}",
        )
    else:
        yield not_shown(
            "suppression off", f"{names} never came, so the check above may pass for want of trying"
        )


def check_texts(known: Known, answer: dict[str, Any]) -> Finding:
    """What the folder's decoder makes of samples: their text, without a trace of control tokens.

    The text may differ from that of the text ids alone in spaces: WordPiece puts one before the nothing of a control token.
    """
    tokenizer = Tokenizer.load(known.folder)
    for ids, text in zip(answer["samples"], answer["sample_texts"], strict=True):
        own, spelled = tokenizer.backend.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)
        if text != own or any(text.count(name) > spelled.count(name) for name in known.record.tokens):
            return fault("tokenizer.json", f"a sample is decoded as {text!r}")
    return passed("text of samples", "no control token is to be seen in it")


def check_scores(
    known: Known, answer: dict[str, Any], num_samples: int, seed: int, progress: Progress | None
) -> Finding:
    """The release's samples and the run's own have the same distribution of scores, by a permutation test of the means.

    The two draw with other random numbers. The test is exact, and gives a false alarm once in 1,000 at most.
    """
    name = "scores of samples"
    if known.run is None or known.edited is None:
        return not_shown(name, "give the run with --run")
    try:
        judge = load_reward_model(known.run.config.reward_model)
    except PHFError as error:
        return not_shown(name, str(error))
    run, tokenizer = known.run, known.run.load_tokenizer(known.step)
    model, config = run.load_model(known.step), run.config
    target = Target.create(known.edited.mode, model, tokenizer, config.objective, config.segments)
    given = {
        "num_samples": num_samples,
        "seed": seed,
        "min_new_tokens": 0,
        "control": "free",
        "engine": "phf",
    }
    sampling = known.record.sampling.model_copy(update={**given, "precision": "fp32"})
    own = [sample.text for sample in target.write([()], sampling, progress)]
    text_ids = [
        [token for token in ids if token not in (known.end, *known.edited.control)]
        for ids in answer["samples"]
    ]
    theirs = [tokenizer.decode(ids[: sampling.max_new_tokens]) for ids in text_ids]
    scores, own_scores = (np.array(score_samples(judge, texts), np.float64) for texts in (theirs, own))
    return compare_scores(scores, own_scores, judge.identity.name, judge.display_scale)


def compare_scores(
    theirs: npt.NDArray[np.float64], own: npt.NDArray[np.float64], judge: str, scale: float
) -> Finding:
    """Whether two samples of scores (NaN = unscored) may come from one distribution."""
    name = "scores of samples"
    theirs, own = theirs[~np.isnan(theirs)], own[~np.isnan(own)]
    if min(len(theirs), len(own)) < 2:
        return not_shown(name, f"{judge} scores fewer than two samples; draw more with --num-samples")
    p, low, high = compare_means(theirs, own)
    error = math.sqrt(theirs.var(ddof=1) / len(theirs) + own.var(ddof=1) / len(own))
    power = (ndtri(1 - FALSE_ALARM / 2) + ndtri(POWER)) * error
    detail = (
        f"{scale * theirs.mean():.4g} by {judge}, the run's {scale * own.mean():.4g}; difference "
        f"{scale * (theirs.mean() - own.mean()):+.3g} [{scale * low:.3g}, {scale * high:.3g}], p {p:.3g}; a difference of "
        f"{scale * power:.2g} would be found with {100 * POWER:.0f} % power"
    )
    if p < FALSE_ALARM:
        return Finding(
            "model.safetensors",
            "FAILED",
            f"model.safetensors or generation_config.json: samples score {detail}",
        )
    return passed(name, detail)


def compare_means(
    one: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    seed: int = 0,
    num_permutations: int = NUM_PERMUTATIONS,
) -> tuple[float, float, float]:
    """p of a two-sided permutation test of equal means, and the 95 % percentile bootstrap interval of their difference."""
    rng = np.random.default_rng(seed)
    pooled, count = np.concatenate([one, other]), len(one)
    observed = abs(one.mean() - other.mean())
    as_far = 1
    for _ in range(num_permutations):
        shuffled = rng.permutation(pooled)
        as_far += abs(shuffled[:count].mean() - shuffled[count:].mean()) >= observed - 1e-12
    means = [rng.choice(scores, (2_000, len(scores))).mean(axis=1) for scores in (one, other)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return as_far / (num_permutations + 1), float(low), float(high)
