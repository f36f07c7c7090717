"""Data of a run that is larger than memory: the objective resolved and its data counted shard by shard, once.

What comes out is kept beside the scores (`ShardScores.keep`) under a hash of the tokens, the scores and the rule.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from phf.config.objectives import GoodConfig, ObjectiveConfig
from phf.objective_resolution import Part, Parts, resolve_parts, resolve_report
from phf.objective_rewards import scale_from_json, scale_to_json
from phf.objectives import Objective, apply_objective, baseline, without_documents
from phf.records import DataRule, Split
from phf.thresholds import ResolvedThreshold
from phf.tokens.kept import Counts, find_kept
from phf.tokens.scores import ShardScores
from phf.tokens.tokens import TokenCache
from phf.tokens.windows import BlockSettings, WindowedBlocks, deal_windows

PLAIN = baseline(np.empty(0, np.float32), np.empty(0, np.int64))
"""MLE, its data rule without its arrays."""


_VERSION = 2
"""Of how rules are resolved: what an older phf has kept is resolved again."""


@dataclass(frozen=True)
class WindowedParts:
    """The documents of a corpus, read a window at a time."""

    tokens: TokenCache
    scores: ShardScores

    @property
    def parts(self) -> Parts:
        """The windows one after the other, none of them in memory."""
        return [partial(self._read_part, window) for window in deal_windows(self.tokens, None)]

    def read(self, shards: npt.NDArray[np.int64]) -> tuple[TokenCache, Part]:
        """Some shards, in memory."""
        own = self.tokens.select(shards)
        return own, Part(self.scores.join(shards), own.segment_lengths, own.document_segments, own.is_train)

    def _read_part(self, shards: npt.NDArray[np.int64]) -> Part:
        return self.read(shards)[1]

    def resolve(self, config: ObjectiveConfig, good: GoodConfig) -> tuple[Objective, ResolvedThreshold]:
        """The objective, and where good ends in validation losses and reports; its data rule has the settings alone."""

        def make() -> dict[str, Any]:
            objective = resolve_parts(config, self.parts)
            threshold = objective.segment_threshold
            if threshold is None:
                threshold = resolve_report(good, self.parts)
            return {**_to_json(objective), "report": asdict(threshold)}

        found = self.scores.keep(
            "rule", [_VERSION, config.model_dump(mode="json"), good.model_dump(mode="json")], make
        )
        scale = scale_from_json(found["reward_scale"])
        unruled = Objective(
            config,
            PLAIN.rule,
            None if found["threshold"] is None else ResolvedThreshold(**found["threshold"]),
            scale,
            tuple(ResolvedThreshold(**level) for level in found["levels"]),
            found["effective_share"],
        )
        return without_documents(unruled), ResolvedThreshold(**found["report"])

    def first_scores(self) -> npt.NDArray[np.float32]:
        """Those of the first window."""
        return self.scores.join(deal_windows(self.tokens, None)[0])

    def lay_out(
        self, objective: Objective, split: Split, **settings: Unpack[BlockSettings]
    ) -> WindowedBlocks:
        """The blocks of a split under an objective's rule. Raises as `WindowedBlocks`."""

        def open_window(
            shards: npt.NDArray[np.int64],
        ) -> tuple[TokenCache, DataRule, npt.NDArray[np.float32]]:
            own, part = self.read(shards)
            ruled = apply_objective(objective, part.scores, part.document_segments, part.is_train)
            return own, ruled.rule, part.scores

        def count() -> dict[str, Any]:
            counts = []
            for shard in range(len(self.tokens.shards)):
                own, rule, _ = open_window(np.array([shard]))
                counts.append(find_kept(own, rule, split).counts)
            return {"counts": counts}

        key = [objective.config.model_dump(mode="json"), _to_json(objective)]
        counts = self.scores.keep(f"counts-{split}", key, count)["counts"]
        table = np.array(counts, np.int64).reshape(-1, len(Counts._fields))
        return WindowedBlocks(self.tokens, objective.rule, table, open_window, split=split, **settings)


def _to_json(objective: Objective) -> dict[str, Any]:
    return {
        "threshold": None if objective.threshold is None else asdict(objective.threshold),
        "levels": [asdict(level) for level in objective.levels],
        "reward_scale": scale_to_json(objective.reward_scale),
        "effective_share": objective.effective_share,
    }
