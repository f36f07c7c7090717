"""Lookahead: of a few continuations, the one that the model itself believes most to be good.

Safe beam search of SafeLM (Maini et al. 2025, arXiv 2504.16980) drops beams after which the model would put its tag for
harmful text. Ours needs no tag to be written: good and bad mode tell how likely the text is under each.
"""

from collections.abc import Sequence

import numpy as np

from phf.config.steer import Lookahead
from phf.config.train import SamplingConfig
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.records import Progress, Sample
from phf.steer.drafts import Pages
from phf.steer.streams import Steered


def generate_with_lookahead(
    target: Target,
    sampling: SamplingConfig,
    config: Lookahead,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Draw `config.width` continuations of `config.tokens` tokens (control tokens included) as plain sampling does, keep
    the one with the highest posterior of good, go on; 2 x width passes a token.

    While candidates write the same segment, its posterior of good ranks them; where some have begun another one, the product
    over segments of posterior / prior does (`Belief.evidence`). One that has ended is a candidate. See
    `Target.write` for the arguments.

    Returns:
        facts: `gain_per_choice`, mean over choices of the evidence of the one kept less the candidates' mean, in nats.

    Raises:
        PHFError: as of `Target.write`; or the mode is neither good nor bad.
    """
    pages = Pages.create(target, sampling, prompts)
    samples: list[Sample] = []
    gains: list[float] = []
    num_passes = 0
    with evaluation_mode(pages.model):
        for batch in pages.batches(config.width):
            drafts = pages.open(batch, "segment", config.width)
            while not drafts.done.all():
                was_done = drafts.done[:: config.width].copy()
                for _ in range(config.tokens):
                    if not drafts.done.all():
                        drafts.step()
                evidence = drafts.belief.evidence.reshape(-1, config.width)
                best = evidence.argmax(1)
                gains += (evidence.max(1) - evidence.mean(1))[~was_done].tolist()
                drafts.copy(np.repeat(np.arange(len(batch)) * config.width + best, config.width))
                num_done = len(samples) + int(drafts.done[:: config.width].sum())
                pages.report(progress, num_done)
            samples += [
                pages.sample(index, drafts, place * config.width) for place, index in enumerate(batch)
            ]
            num_passes += drafts.num_passes
    return Steered.create(samples, num_passes, {"gain_per_choice": float(np.mean(gains))})
