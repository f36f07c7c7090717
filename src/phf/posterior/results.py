"""posterior.json: the frontier of a base model and where policies stand beside it, as measurements (docs/posterior.md)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from phf.errors import PHFError
from phf.records import Number
from phf.results import HasMeasurements, Judge, Measure, Measurement, ResultsFile, pool

# fmt: off
MEASURES = (
    Measure("log_z", "log Z", "nats",
            "The logarithm of the share of the base model's texts that rejection keeps: exp of it is the acceptance.",
            "It is of texts with a score; far below where the base model writes, few draws decide it.", lower_is_better=None, at="beta"),
    Measure("log_z_lower", "log Z, lower bound", "nats",
            "Mean of log Z estimates by sequential Monte Carlo from the base model: below log Z on average.",
            "A gap to the upper bound says that one of them is off, not which.", lower_is_better=None, at="beta"),
    Measure("log_z_upper", "log Z, upper bound", "nats",
            "The same, with one particle held to an exact draw of the target: above log Z on average.",
            "It needs exact draws.", lower_is_better=None, at="beta"),
    Measure("target_kl", "KL(p* || p0)", "nats a text",
            "How far the target is from the base model.",
            "It grows with the length of the texts.", lower_is_better=None, at="beta"),
    Measure("target_score", "score under p*", "",
            "What the target would score; by the annotator, whose scores it is made of, and by judges that it does not"
            " know.",
            "The annotator's own number is low by construction.", at="beta"),
    Measure("exact_score", "score of exact draws", "",
            "Mean over the draws that rejection kept: the same number by another way.",
            "Few draws, a wide interval.", at="beta"),
    Measure("ess", "effective share", "share of draws",
            "(sum w)^2 / sum w^2 over the draws of the base model.",
            "A large share does not show a text that was never drawn.", lower_is_better=False, at="beta"),
    Measure("clipped_share", "share below the bound", "share of p0's texts",
            "Scores are weighed from a bound on. The most of p0 that may lie below it, where its texts would be drawn "
            "too seldom: none of the draws does. 0 by contract where a score is a probability.",
            "It is a share of p0; a target of a small beta may have more of its mass there."),
    Measure("score", "score", "", "Mean score of the policy's texts.", "A judge's view."),
    Measure("kl_from_base", "KL(policy || p0)", "nats a text",
            "What the policy spends: how far it is from the base model, on its own texts.",
            "Texts are token ids: two spellings of one string are two texts."),
    Measure("kl_to_base", "KL(p0 || policy)", "nats a text",
            "On the base model's texts: what the policy no longer writes is dear here.",
            "One text that the policy all but forbids decides it."),
    Measure("kl_to_target", "KL(policy || p*)", "nats a text",
            "How far the policy is from the target of one beta.",
            "It wants log Z, which few draws decide at a small beta.", at="beta"),
    Measure("closest_beta", "closest beta", "units of the score",
            "The beta whose target is nearest to the policy: that with the policy's own mean score.",
            "None where the policy scores no better than the base model.", lower_is_better=None),
    Measure("excess_kl", "excess KL", "nats a text",
            "What the policy spends beyond the least that its score costs; 0 is a point of the frontier.",
            "It is of one base model: another one has another frontier. By a judge that is not the annotator, the "
            "frontier is the annotator's."),
    Measure("kl_bound", "bound of its KL", "nats a text",
            "log n - (n - 1) / n, which is often given for the KL of the best of n: more than it where scores tie.",
            "It does not depend on the scores.", lower_is_better=None),
    Measure("passes", "passes", "forward passes per token", "Of the text that is kept.", "", group="Cost"),
    Measure("judge_calls", "judge calls", "per text", "Of the annotator, to write one text.", "", group="Cost"),
    Measure("path_kl", "KL along the frontier", "nats a text",
            "The picture's line.", "", lower_is_better=None, at="1 / beta"),
    Measure("path_score", "score along the frontier", "", "The picture's line.", "", lower_is_better=None, at="1 / beta"),
)
# fmt: on


@dataclass(frozen=True)
class PolicyResult(HasMeasurements):
    """A policy beside the frontier.

    Attributes:
        name: in tables, such as `conditional good`.
        source: the run it is of, or the base model.
        objective: the kind of the run's objective; empty for a model of another make.
        recipe: what the run was trained with but for its seed (`hash_recipe`); empty for anything else than a run.
        mode: in which it writes.
        method: how its texts are chosen or steered; empty where they are drawn plainly.
        num_unscored: of its texts, without a score by the annotator; left out.
    """

    name: str
    source: str
    objective: str
    mode: str
    method: str
    num_unscored: int
    measurements: list[Measurement]
    recipe: str = ""


@dataclass(frozen=True)
class PosteriorResults(HasMeasurements):
    """The content of posterior.json.

    Attributes:
        settings: the `InferConfig`.
        base: name of the base model.
        base_key: hash of its weights and tokenizer.
        judges: the annotator first.
        bound: what no score of the annotator was below; draws are weighed by exp(-(score - bound) / beta).
        threshold: score <= threshold is good, by the annotator; NaN where there is none.
        num_draws: of the base model.
        num_unscored: of these, without a score by the annotator; left out.
        num_exact: exact draws of the target, by beta.
        notes: what a reader must know.
        policies: the base model's own first.
    """

    settings: dict[str, JsonValue]
    base: str
    base_key: str
    judges: list[Judge]
    bound: float
    threshold: Number
    num_draws: int
    num_unscored: int
    num_exact: dict[str, int]
    notes: list[str]
    measurements: list[Measurement]
    policies: list[PolicyResult]
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))


def pool_policies(several: Sequence[PosteriorResults]) -> list[PolicyResult]:
    """The policies of one base model; or those of several, which differ by seed alone, pooled over base models (`results.pool`).

    Policies of several base models are one if they share their recipe, mode and method.

    Raises:
        PHFError: two stand on one base model, or have other settings or judges.
    """
    first = several[0]
    if len(several) == 1:
        return first.policies
    if len({own.base_key for own in several}) < len(several):
        raise PHFError("two of these stand on one base model; give one folder of 'phf infer' for each")
    for own in several:
        if (own.settings, own.judges) != (first.settings, first.judges):
            raise PHFError(f"{own.base} and {first.base} have other settings or judges; infer them alike")
    kinds: dict[Hashable, list[PolicyResult]] = {}
    for own in several:
        # A second run of one recipe beside one base model is no other base model's.
        seen: Counter[Hashable] = Counter()
        for policy in own.policies:
            of = "the base model" if policy.source == own.base else policy.recipe or policy.name
            kind = (of, policy.mode, policy.method)
            kinds.setdefault((*kind, seen[kind]), []).append(policy)
            seen[kind] += 1
    return [
        replace(
            policies[0],
            name=policies[0].name
            if len(policies) == 1
            else f"{policies[0].name} and {len(policies) - 1} more",
            num_unscored=sum(policy.num_unscored for policy in policies),
            measurements=list(pool([policy.measurements for policy in policies])),
        )
        for policies in kinds.values()
    ]


POSTERIOR = ResultsFile("posterior.json", PosteriorResults, 1, "phf infer ... -o FOLDER")
