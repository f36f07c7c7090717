"""Models that policies are made of: runs, releases, and any causal language model's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from phf.attack.targets import hash_model, open_target
from phf.config.infer import InferConfig
from phf.control import END_TOKEN
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, load_judges
from phf.files import Place, read_json
from phf.generate.target import Target
from phf.model import lm
from phf.policies.policy import Policy
from phf.records import Identity, Mode
from phf.tokens.tokenizer import Tokenizer, load_tokenizer
from phf.train.folder import hash_recipe, read_run_record
from phf.train.start import parse_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from phf.reward_models import RewardModel


@dataclass(frozen=True)
class Source:
    """A model, in the modes it can write in.

    Attributes:
        name: of its folder.
        key: hash of weights and tokenizer.
        objective: the kind of its run's objective; empty for a model of another make.
        recipe: what its run was trained with but for its seed (`hash_recipe`); empty for anything else than a run.
        annotator: the reward model that scored its corpus; None where nothing is known of that.
        reward_model: how that one is loaded.
        threshold: score <= threshold is good; NaN where that is not known.
        folder: where it lies.
    """

    name: str
    key: str
    tokenizer: Tokenizer
    writers: Mapping[Mode, Target]
    objective: str = ""
    recipe: str = ""
    annotator: Identity | None = None
    reward_model: str = ""
    threshold: float = nan
    folder: Path = Path()

    @property
    def is_run(self) -> bool:
        """Whether its training data may be at hand."""
        return (self.folder / "run.json").is_file()

    @property
    def plain(self) -> Target:
        """Without control tokens, given or written."""
        return (
            self.writers["untagged"]
            if "untagged" in self.writers
            else _untag(next(iter(self.writers.values())))
        )

    def list_targets(self) -> list[Target]:
        """One for each mode that differs: a model without control tokens has one."""
        if "untagged" in self.writers or "good" in self.writers:
            return [target for mode, target in self.writers.items() if mode != "none"]
        return [self.plain]


def _untag(target: Target) -> Target:
    return replace(target, mode="untagged")


def open_source(place: Place) -> Source:
    """A run (or `RUN@STEP`), a release, or a causal language model with its tokenizer.

    Raises:
        PHFError: it is none of these, or is damaged.
    """
    folder = Path(parse_place(place)[0])
    if (folder / "run.json").exists() or (folder / "phf.json").exists():
        found, is_run = open_target(place), (folder / "run.json").exists()
        return Source(
            found.name,
            found.key,
            found.tokenizer,
            found.writers,
            found.objective,
            hash_recipe(read_run_record(folder)) if is_run else "",
            found.annotator,
            found.config.reward_model,
            found.threshold,
            folder,
        )
    if not (folder / "config.json").exists():
        raise PHFError(
            f"{folder} is no run (run.json), no release (phf.json) and no language model (config.json); give one of these"
        )
    tokenizer, model = load_tokenizer(str(folder)), lm.load_model(folder)
    target = Target("untagged", model, tokenizer, "document", start=_find_start(folder, tokenizer))
    return Source(folder.resolve().name, hash_model(model, tokenizer), tokenizer, {"untagged": target})


def _find_start(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The token that texts of a model of another make begin with; None where it does not say."""
    path = folder / "tokenizer_config.json"
    start = read_json(path).get("bos_token") if path.is_file() else None
    name = start.get("content") if isinstance(start, dict) else start
    is_ours = tokenizer.backend.token_to_id(END_TOKEN) is not None
    return tokenizer.backend.token_to_id(str(name)) if name and not is_ours else None


def check_sources(base: Source, others: Sequence[Source]) -> None:
    """Refuse models whose texts are not the same ids, and two of one name.

    Raises:
        PHFError: names the model.
    """
    good = base.tokenizer.control.good
    names = [base.name]
    for other in others:
        control, pieces = other.tokenizer.control, other.tokenizer.pieces
        if (control.good, control.end) != (good, base.tokenizer.control.end) or (
            pieces[:good] != base.tokenizer.pieces[:good]
        ):
            raise PHFError(
                f"{other.name} and {base.name} have different vocabularies, and a text of one has no probability by the other; "
                "give runs that were tokenized alike, such as those that began with --init of the base model"
            )
        if other.name in names:
            raise PHFError(f"two models are named {other.name}; rename one of the folders")
        names.append(other.name)


def list_policies(sources: Sequence[Source], config: InferConfig) -> list[tuple[Source, Policy]]:
    """The modes of each model, then guidance of those with control tokens.

    Raises:
        PHFError: see `Policy`.
    """
    found: list[tuple[Source, Policy]] = []
    for source in sources:
        targets = source.list_targets()
        for target in targets:
            name = f"{source.name} {target.mode}" if len(targets) > 1 else source.name
            found.append((source, Policy(name, target, config.sampling)))
        steered = source.writers.get("good")
        if steered is None or steered.is_folded or "bad" not in source.writers:
            continue
        for steer in config.steers:
            assert steer.kind == "guidance"
            name = f"{source.name} good + guidance {steer.scale:g}"
            found.append((source, Policy(name, steered, config.sampling, steer)))
    return found


def choose_judges(
    base: Source, others: Sequence[Source], specs: Sequence[str], load: "Callable[[str], RewardModel]"
) -> tuple[list[LoadedJudge], list[str]]:
    """The reward model whose scores make the target, first: the annotator of the base model's corpus, or of the first run's; where there
    is none, the first that is named. Then the held-out ones.

    Raises:
        PHFError: there is none.
    """
    for source in (base, *others):
        if source.annotator is not None:
            return load_judges(source.annotator, source.annotator.slug, source.reward_model, specs, load)
    if not specs:
        raise PHFError(f"{base.name} does not say what scored its corpus; name a reward model with --judge")
    return [
        LoadedJudge("annotator" if not place else "held-out", load(spec)) for place, spec in enumerate(specs)
    ], []
