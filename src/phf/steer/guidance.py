"""Classifier-free guidance (Ho and Salimans 2022; for text Sanchez et al. 2023): away from a reference stream."""

from collections.abc import Sequence

from torch import Tensor

from phf.config.steer import Guidance
from phf.config.train import SamplingConfig
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.records import Progress, Sample
from phf.steer.drafts import Pages
from phf.steer.streams import Steered


def generate_guided(
    target: Target,
    sampling: SamplingConfig,
    config: Guidance,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Draw from softmax of l_ref + scale (l_mode - l_ref), before temperature and top-p; two passes a token.

    l is a stream's log-softmax. The reference reads the same text with every control token exchanged for the other mode's,
    or left out (`config.against`). At scale 1 the samples are those of `Target.write`. See there for the arguments.

    Raises:
        PHFError: as of `Target.write`; or the mode is neither good nor bad.
    """
    pages = Pages.create(target, sampling, prompts)
    num_text = target.tokenizer.control.good

    def combine(own: Tensor, reference: Tensor) -> Tensor:
        return own + (config.scale - 1) * compare(own, reference, num_text)

    samples: list[Sample] = []
    num_passes = 0
    with evaluation_mode(pages.model):
        for batch in pages.batches():
            drafts = pages.open(batch, config.against)
            while not drafts.done.all():
                drafts.step(combine)
                pages.report(progress, len(samples) + int(drafts.done.sum()))
            samples += [pages.sample(index, drafts, draft) for draft, index in enumerate(batch)]
            num_passes += drafts.num_passes
    return Steered.create(samples, num_passes, {})


def compare(own: Tensor, reference: Tensor, num_text: int) -> Tensor:
    """How much more the mode's stream wants each id than the reference does, up to a constant per row, which no softmax
    sees: float32 [B, V].

    A control token stands for the end of its segment: the mode's own is rare in the reference for what it says and not for
    where it stands, so all control tokens (ids from `num_text` on) are compared by their total mass. Compared one by one,
    guidance would reward ending a segment.
    """
    difference = own - reference
    ends = own[:, num_text:].logsumexp(-1, keepdim=True) - reference[:, num_text:].logsumexp(-1, keepdim=True)
    difference[:, num_text:] = ends
    return difference
