"""Reward models that are trained for a finetuning, on labels of a gold judge that the policy never learns from (docs/finetune.md).

They lie beside the run, in OUT-proxy/KEY/: `labels-R.jsonl`, all that was labelled up to round R, and `R/`, a reward model of `phf reward train`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phf.attack.targets import Segments
from phf.config.finetune import Proxy
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge
from phf.files import write_bytes
from phf.finetune.pairs import find_segments
from phf.finetune.start import Start
from phf.folders import lock_folder
from phf.records import Progress
from phf.reward_models import load_reward_model
from phf.reward_training.labels import read_labels
from phf.reward_training.train import train_reward_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STREAM = 3
"""Of random numbers: that of the first round's texts, counted on from there."""


@dataclass
class Proxies:
    """What a finetuning learns from at each step: the reward model of its start, or, with `proxy`, what was trained on the labels so far.

    Attributes:
        gold: the start, with the reward model that labels as what is learned from.
        run: the folder of the run that learns.
    """

    gold: Start
    run: Path
    progress: Progress | None = None
    _trained: dict[int, Start] = field(default_factory=dict)

    def at(self, step: int, model: "PreTrainedModel | None" = None) -> Start:
        """The start with what a step, counted from 0, learns from; labelled and trained before the first step of a round.

        Args:
            model: the policy before that step, which writes the texts to label where they are its own; None: the start's model.

        Raises:
            PHFError: too few texts are good or bad to learn from; the labels of a round that began earlier are gone.
        """
        config = self.gold.config
        if config.proxy is None:
            return self.gold
        number = config.proxy.round_of(step, config.steps)
        if number not in self._trained:
            place = self.run.with_name(f"{self.run.name}-proxy") / self.gold.key
            with lock_folder(place, "labelling into"):
                labels = place / f"labels-{number}.jsonl"
                if not labels.exists():
                    is_late = number == config.proxy.round_of(step - 1, config.steps)
                    if step > 0 and (model is None or is_late):
                        raise PHFError(
                            f"{labels} is gone, and the policy has moved on since it wrote that; delete {self.run} and {place}, "
                            "and begin again"
                        )
                    earlier = (place / f"labels-{number - 1}.jsonl").read_bytes() if number else b""
                    texts = self._find_texts(config.proxy, number, model or self.gold.model)
                    write_bytes(labels, earlier + self._label(texts))
                self._trained[number] = self._train(labels, place / str(number))
        return self._trained[number]

    def _find_texts(self, settings: Proxy, number: int, model: "PreTrainedModel") -> Sequence[str]:
        gold, num = self.gold, settings.labels_a_round
        if settings.data == "corpus":
            tokens = gold.run.data().tokens
            found = find_segments(tokens, gold.config.sampling.max_new_tokens)
            rng = np.random.default_rng([gold.config.seed or 0, _STREAM])
            return [tokens.tokenizer.decode(ids) for ids in Segments(tokens, rng.permutation(found)[:num])]
        prompts = [gold.prompts[index % len(gold.prompts)] for index in range(num)]
        what = f"texts to label, round {number}"
        return gold.write(model, prompts, _STREAM + number, what, self.progress)[1]

    def _label(self, texts: Sequence[str]) -> bytes:
        """The gold judge's scores of texts, as ratings in lines of JSON; what is blank or has no score is no label."""
        rows = [
            {"text": text, "rating": -score}
            for text, score in zip(texts, self.gold.score(texts).tolist(), strict=True)
            if text.strip() and np.isfinite(score)
        ]
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()

    def _train(self, path: Path, folder: Path) -> Start:
        gold, labels = self.gold, read_labels(path)
        name = f"{gold.reward.model.identity.name}-{len(labels.texts)}-labels"
        try:
            train_reward_model(labels, folder, seed=gold.config.seed or 0, name=name, progress=self.progress)
        except PHFError as error:
            raise PHFError(
                f"what {gold.reward.slug} labelled trains no reward model ({error}); give more with --set proxy.labels, or other texts with "
                "--set proxy.data"
            ) from None
        proxy = LoadedJudge("held-out", load_reward_model(folder))
        note = f"{proxy.slug} learned from {len(labels.texts):,} labels of {gold.reward.slug}"
        judges, notes = [proxy, *gold.judges], [*gold.notes, note]
        return replace(gold, judges=judges, reward_spec=str(folder), notes=notes)
