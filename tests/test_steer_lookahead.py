"""Lookahead against the same thing written slowly, without cache or batch."""

from itertools import pairwise

import numpy as np
import torch
from known_models import (
    BAD,
    END,
    GOOD,
    LabelledSource,
    TinyTokenizer,
    create_llama,
    create_target,
    expected_probs,
    generate,
)
from transformers import LlamaForCausalLM

from phf.config.steer import Lookahead
from phf.config.train import SamplingConfig
from phf.generate.engine import uniform_numbers
from phf.records import Sample
from phf.steer.lookahead import generate_with_lookahead


def next_log_probs(model: LlamaForCausalLM, page: list[int], *, is_text: bool = True) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([page])).logits[0, -1, :12].double()
    return logits[: GOOD if is_text else 12].log_softmax(0).numpy()


def find_evidence(model: LlamaForCausalLM, page: list[int]) -> float:
    """Sum over segments of log posterior / prior of good, one pass a token."""
    starts = [place for place, token in enumerate(page) if token == GOOD]
    total = 0.0
    for start, stop in pairwise([*starts, len(page)]):
        before = next_log_probs(model, page[:start], is_text=False)
        q = 1 / (1 + np.exp(before[BAD] - before[GOOD]))
        likelihood = []
        for told in (GOOD, BAD):
            own = [*page[:start], told, *page[start + 1 : stop]]
            text = [place for place in range(start + 1, stop) if page[place] != END]
            likelihood.append(np.exp(sum(next_log_probs(model, own[:place])[own[place]] for place in text)))
        total += np.log(likelihood[0] / (q * likelihood[0] + (1 - q) * likelihood[1]))
    return total


def write_slowly(
    model: LlamaForCausalLM, sampling: SamplingConfig, config: Lookahead, index: int
) -> list[int]:
    """The new ids of a sample, control tokens and end included."""
    numbers = [uniform_numbers(sampling.seed, index, 200, copy) for copy in range(config.width)]
    page: list[int] = []

    def is_over(new: list[int]) -> bool:
        return (
            END in new
            or sum(token != GOOD for token in new) == sampling.max_new_tokens
            or len(new) == 2 * sampling.max_new_tokens
        )

    while not is_over(page):
        candidates = []
        for own in numbers:
            new = list(page)
            for _ in range(config.tokens):
                if is_over(new):
                    break
                logits = next_log_probs(model, [END, GOOD, *new], is_text=False).copy()
                logits[BAD] = -np.inf
                probs = expected_probs(torch.from_numpy(logits), sampling.temperature, sampling.top_p)
                new.append(int(np.searchsorted(probs.cumsum(), own[len(new)], side="right")))
            candidates.append(new)
        page = max(candidates, key=lambda new: find_evidence(model, [END, GOOD, *new]))
    return page


def test_it_keeps_the_candidate_that_the_slow_way_keeps() -> None:
    model = create_llama(seed=3)
    sampling = SamplingConfig(
        num_samples=4, min_new_tokens=0, max_new_tokens=14, temperature=1.0, top_p=0.95, batch_size=8
    )
    config = Lookahead(width=3, tokens=4)
    found = generate_with_lookahead(create_target(model), sampling, config)
    plain = generate(model, TinyTokenizer(), "good", sampling)
    num_ended = num_segments = 0
    for sample in found.samples:
        new = write_slowly(model, sampling, config, sample.index)
        text = [token for token in new if token not in (END, GOOD)]
        assert sample == Sample("good", sample.index, TinyTokenizer().decode(text), len(text), END in new)
        num_ended += sample.ended
        num_segments += new.count(GOOD)
    assert num_ended > 0
    assert num_segments > 2
    assert found.samples != plain


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = create_llama(seed=3)
    prompts = [[], [1, 2, 3, 4], [5]]
    sampling = SamplingConfig(num_samples=6, min_new_tokens=0, max_new_tokens=25)
    config = Lookahead(width=3, tokens=5)
    together = generate_with_lookahead(create_target(model), sampling, config, prompts=prompts)
    alone = sampling.model_copy(update={"batch_size": 1})
    single = generate_with_lookahead(create_target(model), alone, config, prompts=prompts)
    assert together.samples == single.samples
    few = sampling.model_copy(update={"num_samples": 4})
    assert (
        generate_with_lookahead(create_target(model), few, config, prompts=prompts).samples
        == together.samples[:4]
    )


def test_where_the_posterior_is_right_there_is_less_of_bad() -> None:
    """At one length, since text that goes on says more for itself than text that has ended. "c" is four times as frequent
    in bad segments."""
    sampling = SamplingConfig(
        num_samples=200, min_new_tokens=16, max_new_tokens=16, temperature=1.0, top_p=1.0
    )
    config = Lookahead(width=4, tokens=4)
    plain = generate(LabelledSource(), TinyTokenizer(), "good", sampling)
    found = generate_with_lookahead(create_target(LabelledSource()), sampling, config)

    def share(samples: list[Sample]) -> float:
        return "".join(sample.text for sample in samples).count("c") / (16 * len(samples))

    assert share(found.samples) < 0.6 * share(plain)
    assert 8 < found.passes_per_token < 12
    assert found.facts["gain_per_choice"] > 0
