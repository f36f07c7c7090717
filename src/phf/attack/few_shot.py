"""Bad segments in the context, no training: does a model that saw much bad text go on in its manner?"""

from collections.abc import Iterator, Sequence

import numpy as np

from phf.attack.victim import Attacked, Ids, Victim
from phf.config.attack import FewShot
from phf.errors import PHFError


def attack_few_shot(
    victim: Victim, texts: Sequence[Ids], settings: FewShot, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """Bad segments behind the victim's prefix, as many whole ones as fit, others for each prompt.

    The context limits how many texts a prompt holds; with more texts the prompts differ more. No steps are spent: one
    `Attacked` at step 0 is given. For the arguments see `phf.attack.suite.run_attack`.

    Raises:
        PHFError: the prefix fills `max_tokens`.
    """
    room = longest_prompt(victim, settings) - len(victim.prefix)
    if room < 1:
        raise PHFError(
            f"few-shot: {len(victim.prefix)} tokens of prefix leave no room for a bad text in max_tokens "
            f"{longest_prompt(victim, settings)}; give more"
        )
    rng = np.random.default_rng([seed, len(texts)])
    prompts = tuple(
        _fill(texts, rng.permutation(len(texts)).tolist(), room) for _ in range(settings.num_prompts)
    )
    yield Attacked(0, victim.model, victim.prefix, prompts)


def longest_prompt(victim: Victim, settings: FewShot) -> int:
    """Tokens that prefix and bad texts may have."""
    return settings.max_tokens or victim.context // 2


def _fill(texts: Sequence[Ids], order: Sequence[int], room: int) -> tuple[int, ...]:
    """Whole texts in an order until the next does not fit; a first one that does not is cut."""
    prompt: list[int] = list(texts[order[0]])[:room]
    for index in order[1:]:
        if len(prompt) + len(texts[index]) > room:
            break
        prompt.extend(texts[index])
    return tuple(prompt)
