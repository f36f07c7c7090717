"""What a user may choose of `phf finetune` (docs/finetune.md)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from phf.config.fields import StrictConfig
from phf.config.infer import TextSampling
from phf.config.objectives import ObjectiveConfig
from phf.config.train import parse_spec
from phf.errors import PHFError
from phf.records import ControlStyle

_Count = Annotated[int, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0)]


class RLOO(StrictConfig):
    """REINFORCE with the mean of the other samples as baseline, on samples of the current policy."""

    kind: Literal["rloo"] = "rloo"
    beta: Annotated[float, Field(ge=0)] = 0.05
    """What a nat of KL from the start costs, in units of the score: the reward is -score - beta log(policy / start)."""
    group: Annotated[int, Field(ge=2)] | None = None
    """Samples of one prompt, whose mean is the baseline of the others; null takes a step's whole batch, for one prompt."""
    passes: _Count = 1
    """Optimizer steps on one batch of samples; beyond the first the ratio to the policy that wrote them is not 1."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio of a text's probabilities is clipped to 1 - clip and 1 + clip; with one pass it is 1."""


class _Pairs(StrictConfig):
    """Texts of two kinds, the better and the worse."""

    data: str = "samples"
    """Where they come from: samples of the start model, segments of its corpus (corpus), or a file, folder or hf:ID of preferences."""
    beta: _Rate = 0.1
    """How dearly the policy pays for leaving the start model."""


class DPO(_Pairs):
    """Direct preference optimisation on pairs, by TRL's loss (Rafailov et al. 2023)."""

    kind: Literal["dpo"] = "dpo"


class KTO(_Pairs):
    """Kahneman-Tversky optimisation on good and bad texts, by TRL's loss (Ethayarajh et al. 2024)."""

    kind: Literal["kto"] = "kto"


class BestOfN(StrictConfig):
    """Likelihood of one pool of samples, each weighed by its chance to be the best of n."""

    kind: Literal["bestofn"] = "bestofn"
    n: Annotated[int, Field(ge=2)] = 16
    """Samples of which the best is learned."""


class Pretraining(StrictConfig):
    """An objective of pretraining, gone on with."""

    kind: Literal["phf"] = "phf"
    objective: ObjectiveConfig
    """The objective, as `phf train` takes it."""
    data: Literal["samples", "corpus"] = "samples"
    """What it reads: scored samples of the start model, or its corpus."""


Method = Annotated[RLOO | DPO | KTO | BestOfN | Pretraining, Field(discriminator="kind")]
PlainMethod = Annotated[RLOO | DPO | KTO | BestOfN, Field(discriminator="kind")]
"""Methods that are no objective of pretraining."""


def parse_method(text: str) -> "RLOO | DPO | KTO | BestOfN | Pretraining":
    """A method from `rloo`, `rloo:beta=0.1,group=8`, `phf:conditional`, `phf:rwr:beta=0.5`, `phf:corpus:filtering:threshold=0.3`.

    Raises:
        PHFError: the method, a key or a value is not known.
    """
    if text == "phf":
        raise PHFError("--method phf names no objective; give one, such as phf:conditional:threshold=0.3")
    if not text.startswith("phf:"):
        found: RLOO | DPO | KTO | BestOfN = parse_spec(PlainMethod, text, "--method")
        return found
    rest = text.removeprefix("phf:")
    is_corpus = rest.startswith("corpus:")
    objective = parse_spec(ObjectiveConfig, rest.removeprefix("corpus:"), "--method phf:")
    return Pretraining(objective=objective, data="corpus" if is_corpus else "samples")


class Proxy(StrictConfig):
    """A reward model that is trained on labels of a gold judge, to be learned from in its place: what so many labels are worth."""

    gold: str
    """The reward model that labels, higher = worse; what is learned from never sees it."""
    labels: Annotated[int, Field(ge=50)] = 1000
    """Texts that it labels, in all rounds together."""
    data: Literal["corpus", "samples", "policy"] = "samples"
    """Which: segments of the start run's training split (corpus), texts of the start model (samples), or texts of the policy as it is, anew
    in each round (policy; for rloo)."""
    rounds: _Count = 4
    """Of labelling and training anew, for data: policy; each has its share of the labels and of the steps, one step at least."""

    @property
    def num_rounds(self) -> int:
        """Proxies that are trained, one after the other."""
        return self.rounds if self.data == "policy" else 1

    @property
    def labels_a_round(self) -> int:
        """What does not divide is not spent."""
        return self.labels // self.num_rounds

    def round_of(self, step: int, steps: int) -> int:
        """The round of a step, counted from 0; they are as long as one another, but for a step."""
        return step * self.num_rounds // steps


class PolicySampling(TextSampling):
    """How texts are drawn to learn from and to measure: from all tokens, as the policy has them."""

    num_samples: _Count = 512
    """Texts by which the result is measured at the end."""
    control: ControlStyle = "prefix"
    """Where the mode's control token stands: before the first segment alone (prefix), or before every one, as in training (forced; not for
    dpo and kto, nor behind prompts)."""


class FinetuneConfig(StrictConfig):
    """How a run is finetuned on feedback."""

    method: Method = RLOO()
    """rloo, dpo, kto, bestofn, or phf:OBJECTIVE, with their settings: rloo:beta=0.1, or as a group of keys with kind."""
    steps: _Count = 40
    """Batches of texts that are learned from."""
    texts: _Count = 64
    """Texts in a batch; pairs for dpo. Prompts and texts go through the model at once."""
    learning_rate: _Rate = 3e-4
    """AdamW's, constant; without weight decay."""
    clip_norm: _Rate = 1.0
    """The gradient's norm is clipped to this."""
    mode: Literal["good", "untagged"] | None = None
    """What is finetuned: the model without control tokens (untagged) or in good mode; null takes the mode that one would release."""
    reward: str | None = None
    """The reward model to learn from, higher = worse as everywhere; null takes the one that scored the start run's corpus."""
    proxy: Proxy | None = None
    """To learn from a reward model that is trained for it, on labels of proxy.gold, in place of one that is there."""
    judges: tuple[str, ...] = ()
    """Held-out judges that measure the result and are not learned from."""
    prompts: str | None = None
    """A text file with a prompt a line; null writes from nothing."""
    pool: _Count = 2048
    """Texts of the start model that are drawn and scored once, for the methods that learn from fixed texts."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 10
    """Steps between two checkpoints; 0 saves only at the end (and when stopped)."""
    keep_checkpoints: Annotated[int, Field(ge=1)] | Literal["all"] = 2
    """So many last checkpoints stay on the disk, or all: for a curve over reward calls."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Decides every random number; null takes the start run's."""
    sampling: PolicySampling = PolicySampling()
    """How texts are drawn."""

    @field_validator("method", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return parse_method(value) if isinstance(value, str) else value

    @property
    def preferences(self) -> str | None:
        """Where preferences that people gave are read, so that nothing is learned from a reward model; None where it is."""
        data = self.method.data if isinstance(self.method, _Pairs) else "samples"
        return None if data in ("samples", "corpus") else data

    @model_validator(mode="after")
    def _can_learn(self) -> "FinetuneConfig":
        is_limited = isinstance(self.method, _Pairs) or self.prompts is not None
        if self.sampling.control == "free" or (self.sampling.control == "forced" and is_limited):
            raise ValueError(
                f"sampling.control {self.sampling.control} is not finetuned by {self.method.kind}, or not behind prompts; give --set "
                "sampling.control=prefix"
            )
        if self.sampling.top_p < 1:
            raise ValueError(
                f"sampling.top_p {self.sampling.top_p:g} draws from another policy than the one that learns; give 1"
            )
        if self.sampling.engine != "phf" or self.sampling.precision != "fp32":
            raise ValueError(
                "what learns is drawn by phf in fp32; leave sampling.engine and sampling.precision out"
            )
        if "seed" in self.sampling.model_fields_set and self.sampling.seed not in (0, self.seed):
            raise ValueError(
                f"sampling.seed is that of all random numbers here; give --seed {self.sampling.seed}"
            )
        if self.proxy is not None:
            self._check_proxy(self.proxy)
        if isinstance(self.method, RLOO):
            group = self.method.group or self.texts
            if group < 2 or self.texts % group:
                raise ValueError(
                    f"texts {self.texts} is no multiple of a group of {group}; give --texts {2 * group}"
                )
        return self

    def _check_proxy(self, proxy: Proxy) -> None:
        if self.reward is not None or self.preferences is not None:
            raise ValueError(
                f"proxy.gold {proxy.gold} trains what is learned from; leave out {'reward' if self.reward else 'preferences'}"
            )
        if proxy.data == "policy" and not isinstance(self.method, RLOO):
            raise ValueError(
                f"proxy.data policy refreshes on what the policy writes, and {self.method.kind} learns from fixed texts; give "
                "proxy.data=samples, or --method rloo"
            )
        if proxy.num_rounds > self.steps:
            raise ValueError(f"proxy.rounds {proxy.rounds} are more than {self.steps} steps; give fewer")


OPTIONS = {
    "steps": "--steps",
    "texts": "--texts",
    "learning_rate": "--learning-rate",
    "mode": "--mode",
    "reward": "--reward",
    "judges": "--judge",
    "prompts": "--prompts",
    "pool": "--pool",
    "sampling.max_new_tokens": "--max-new-tokens",
    "sampling.num_samples": "--num-samples",
    "seed": "--seed",
}
"""Settings that have an option of their own, by dotted key; for the others there is `--set`."""
