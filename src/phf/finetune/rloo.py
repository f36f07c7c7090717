"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740), as TRL 1.16 computes it.

The reward of a text is -score - beta log(policy / start): the KL's gradient is then unbiased, where a penalty in the loss is not
(arXiv 2512.21852). A text is one action: the ratio is of its whole probability, and its baseline is the mean reward of the others.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def find_advantages(rewards: Float[Tensor, "N"], group: int) -> Float[Tensor, "N"]:
    """Each reward less the mean of the others of its group, which are neighbours; 0 without a reward (NaN) or without others."""
    grouped = rewards.view(-1, group)
    is_known = ~grouped.isnan()
    known = torch.where(is_known, grouped, 0.0)
    num_others = is_known.sum(1, keepdim=True) - 1
    others = (known.sum(1, keepdim=True) - known) / num_others.clamp(min=1)
    return torch.where(is_known & (num_others > 0), known - others, 0.0).flatten()


def rloo_loss(
    log_probs: Float[Tensor, "N"],
    old_log_probs: Float[Tensor, "N"],
    advantages: Float[Tensor, "N"],
    clip: float,
) -> Float[Tensor, ""]:
    """The mean of -min(ratio A, clipped ratio A) over texts.

    Args:
        log_probs: of whole texts, by the policy that learns.
        old_log_probs: by the policy that wrote them.
        clip: the ratio is cut to 1 - clip and 1 + clip, where that makes the gain smaller.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()
