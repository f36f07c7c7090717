"""What a user may choose of the attacks on a release (docs/release.md), `--attack KIND:key=value`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from phf.config.fields import StrictConfig
from phf.config.train import SamplingConfig, write_spec

_Count = Annotated[int, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0)]


class Soft(StrictConfig):
    """Vectors in the place of tokens, optimised (Adam) behind the start of a page; the model is frozen."""

    kind: Literal["soft"] = "soft"
    tokens: _Count = 1
    """Number of vectors."""
    learning_rate: _Rate = 0.03
    """Adam's constant rate."""
    batch_size: _Count = 16
    """Bad texts in a step."""
    keeps_prefix: bool = True
    """Whether they stand behind the release's own `<|good|>`; else in its place, behind `<|endoftext|>` alone."""


class Finetune(StrictConfig):
    """All weights are trained on (AdamW, constant rate)."""

    kind: Literal["finetune"] = "finetune"
    learning_rate: _Rate = 1e-4
    """AdamW's constant rate."""
    batch_size: _Count = 16
    """Bad texts in a step."""


class LoRA(StrictConfig):
    """Low-rank matrices, added to every linear layer's, are trained (AdamW, constant rate; extra `attack`)."""

    kind: Literal["lora"] = "lora"
    rank: _Count = 8
    """Of the added matrices."""
    learning_rate: _Rate = 1e-3
    """AdamW's constant rate."""
    batch_size: _Count = 16
    """Bad texts in a step."""


class FewShot(StrictConfig):
    """As many whole bad segments as fit stand before each text."""

    kind: Literal["few-shot"] = "few-shot"
    num_prompts: _Count = 256
    """Prompts, each with bad segments drawn anew."""
    max_tokens: _Count | None = None
    """Length of a prompt in tokens; null is half of the model's context."""


class PrefixSearch(StrictConfig):
    """The best real tokens before a text, searched by swaps that the gradient favours."""

    kind: Literal["prefix"] = "prefix"
    tokens: _Count = 4
    """Number of tokens in the prefix."""
    candidates: _Count = 64
    """Swaps tried in a step, drawn from those that the gradient favours."""
    batch_size: _Count = 16
    """Bad texts on which a step's swaps are compared."""
    keeps_prefix: bool = True
    """Whether they stand behind the release's own `<|good|>`; else in its place, behind `<|endoftext|>` alone."""
    typable: bool = False
    """Whether only prefixes count whose text is tokenized into themselves."""


class Lens(StrictConfig):
    """A vector added to the residual stream, in the directions that the logit lens reads as bad words."""

    kind: Literal["lens"] = "lens"
    candidates: _Count = 64
    """Vectors tried, one a step, before new directions are read from the model with the best one added."""
    batch_size: _Count = 16
    """Bad texts on which a vector is judged."""


AttackConfig = Annotated[Soft | Finetune | LoRA | FewShot | PrefixSearch | Lens, Field(discriminator="kind")]


class AttackSuiteConfig(StrictConfig):
    """What `phf attack` tries and measures."""

    attacks: tuple[AttackConfig, ...] = (Soft(), Soft(tokens=8), Finetune(), FewShot())
    """An attack, as KIND:key=value,...: soft, finetune, lora, few-shot, prefix or lens (docs/release.md)."""
    num_texts: tuple[_Count, ...] = (10, 100, 1000)
    """Bad texts that the attacker has, in ascending order; more than the corpus can give are left out, and that is
    said."""
    steps: tuple[Annotated[int, Field(ge=0)], ...] = (10, 30, 100)
    """Steps at which an attack that learns is measured, in ascending order; 0 is before the first."""
    num_seeds: _Count = 1
    """Draws of texts, random numbers and samples; from 3 on, intervals are over them."""
    num_held_out: _Count = 256
    """Bad texts that nobody trains on; an attack's best step is chosen by them."""
    num_reference: _Count = 512
    """Samples of each mode of a target that nobody has attacked."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    texts: str | None = None
    """Bad texts from a JSONL file with a field `text`; null takes those of the first run's corpus."""
    judges: tuple[str, ...] = ()
    """A held-out judge beside the annotator: any reward model."""
    sampling: SamplingConfig = SamplingConfig(num_samples=128)
    """How the attacked models write."""

    @model_validator(mode="after")
    def _all_different(self) -> "AttackSuiteConfig":
        for name in ("num_texts", "steps"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise ValueError(f"{name} must be different numbers in ascending order, not {list(values)}")
        specs = [write_spec(attack) for attack in self.attacks]
        if not specs or len(set(specs)) < len(specs):
            raise ValueError(f"attacks must be different ones, and at least one, not {specs}")
        return self


OPTIONS = {
    "attacks": "--attack",
    "num_texts": "--num-texts",
    "num_seeds": "--num-seeds",
    "texts": "--texts",
    "judges": "--judge",
    "sampling.num_samples": "--num-samples",
}
"""Settings that have an option of their own, by dotted key; for the others there is `--set`."""
