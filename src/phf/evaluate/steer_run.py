"""Drawing samples of a run by a method of steering (docs/steering.md)."""

from collections.abc import Callable, Sequence

from phf.annotate.annotation import Annotation
from phf.config.objectives import ObjectiveConfig
from phf.config.steer import Direction, Rejection, SteerConfig
from phf.config.train import SamplingConfig, write_spec
from phf.corpus.store import Corpus
from phf.errors import NotApplicableError
from phf.evaluate.held_out import HeldOutSegments
from phf.evaluate.pages import PageReader
from phf.evaluate.rollouts import open_target
from phf.files import Place, as_list
from phf.generate.target import Target
from phf.objectives import has_control_tokens, is_additive
from phf.records import Mode, Progress
from phf.reward_models import RewardModel, load_reward_model
from phf.steer.steering import Aids, choose_style, needs_control_tokens, needs_score, steer
from phf.steer.streams import Steered
from phf.train.run import Run

NUM_TEXTS = 256
"""Held-out segments that directions are estimated on, half of them good."""

Load = Callable[[str], RewardModel]


def check_method(objective: ObjectiveConfig, config: SteerConfig) -> None:
    """Refuse a method that a run cannot be steered by.

    Raises:
        PHFError: the method needs control tokens, and a model of this objective has none.
    """
    if not needs_control_tokens(config) or (has_control_tokens(objective) and not is_additive(objective)):
        return
    why = "adds them to its inputs" if is_additive(objective) else "does not learn any"
    raise NotApplicableError(
        f"{write_spec(config)} needs control tokens in the text, and {objective.kind} {why}; "
        "give best-of-n, rejection, or smc:twist=false"
    )


def steer_run(
    folder: Place,
    mode: Mode,
    sampling: SamplingConfig,
    config: SteerConfig,
    *,
    prompts: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Steered:
    """Draw samples from a run's last checkpoint in one mode, steered.

    Args:
        prompts: texts to continue; sample i continues text i modulo their number.

    Raises:
        PHFError: the run cannot be steered so, or what the method needs (the reward model, or for a direction the run's
            data) is not there; see also `sample_run`.
    """
    run = Run.open(folder)
    check_method(run.config.objective, config)
    target = open_target(run, mode)
    threshold = float(run.record["threshold"]["value"])

    def open_reader() -> PageReader:
        data = run.data()
        return PageReader.of(data)

    aids = find_aids(run, config, threshold, open_reader, load_reward_model, sampling.seed)
    return steer_prompts(target, sampling, config, aids, as_list(prompts), progress)


def steer_prompts(
    target: Target,
    sampling: SamplingConfig,
    config: SteerConfig,
    aids: Aids,
    prompts: Sequence[str],
    progress: Progress | None = None,
) -> Steered:
    """Continue texts, read in the style of control that the method writes in; see `steer`."""
    style = choose_style(sampling, config).control
    encoded = [target.encode(prompt, style) for prompt in prompts]
    return steer(target, sampling, config, aids, prompts=encoded or [()], progress=progress)


def find_aids(
    run: Run,
    config: SteerConfig,
    threshold: float,
    open_reader: Callable[[], PageReader],
    load: Load,
    seed: int,
) -> Aids:
    """What a method needs beside the run's model.

    Args:
        threshold: of the run, by its annotator.

    Raises:
        PHFError: the run's scores were imported and no reward model is named, or the threshold is not of the one that is.
    """
    if isinstance(config, Direction) and config.of == "difference":
        segments = HeldOutSegments.read(open_reader(), threshold, seed)
        return Aids(texts=[*segments.good[: NUM_TEXTS // 2], *segments.bad[: NUM_TEXTS // 2]])
    if not needs_score(config):
        return Aids()
    spec: str | None = getattr(config, "reward_model", None)
    if spec is not None:
        reward_model = load(spec)
        is_own = reward_model.identity.to_json() == run.record["reward_model"]
        if isinstance(config, Rejection) and config.threshold is None and not is_own:
            raise NotApplicableError(
                f"--steer rejection: the run's threshold {threshold:g} is of {run.record['reward_model']['name']}, not of {spec}; "
                f"give rejection:reward_model={spec},threshold=NUMBER"
            )
        return Aids.create(reward_model, threshold)
    annotation = Annotation.open(Corpus.open(run.find_corpus()), run.config.reward_model, run.config.segments)
    if annotation.identity.version == "imported":
        raise NotApplicableError(
            f"--steer {config.kind}: the scores of {annotation.slug} were imported, and what made them cannot be run here; "
            f"give {config.kind}:reward_model=NAME"
        )
    return Aids.create(load(str(annotation.manifest["reward_model_spec"])), threshold)
