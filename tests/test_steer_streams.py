"""Two streams of one text: both say what the model says of it without a cache, whatever was copied in between."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    END,
    GOOD,
    TinyTokenizer,
    create_bigram,
    create_llama,
    create_table,
    create_target,
)
from transformers import LlamaForCausalLM

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.measures.calibration import segment_posteriors
from phf.evaluate.pages import Page
from phf.records import BAD as BAD_LABEL
from phf.records import GOOD as GOOD_LABEL
from phf.records import Mode
from phf.steer.drafts import Belief, Drafts, Pages

PROMPTS = [[], [1, 2, GOOD, 3, 4], [5], [1, GOOD, 2, GOOD]]
SAMPLING = SamplingConfig(
    num_samples=8, min_new_tokens=0, max_new_tokens=24, temperature=1.0, top_p=1.0, batch_size=8
)


def open_pages(model: LlamaForCausalLM, mode: Mode = "good", sampling: SamplingConfig = SAMPLING) -> Pages:
    prompts = [[BAD if token == GOOD and mode == "bad" else token for token in prompt] for prompt in PROMPTS]
    return Pages.create(create_target(model, mode), sampling, prompts)


def read_ids(pages: Pages, drafts: Drafts, draft: int, index: int) -> list[int]:
    """The whole page of a draft."""
    return [*pages.ids[index], *drafts.ids(draft).tolist()]


def exact_logits(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :12]


def exact_beliefs(model: LlamaForCausalLM, ids: list[int], own: int) -> list[float]:
    """The posterior of good of each segment of a page, by the calibration's own code."""
    ids = [token for token in ids[1:] if token != END]
    starts = [place for place, token in enumerate(ids) if token == own]
    segments = [np.array(ids[start + 1 : stop], np.int64) for start, stop in pairwise([*starts, len(ids)])]
    label = GOOD_LABEL if own == GOOD else BAD_LABEL
    pages = [
        Page(tuple(segments[:num]), np.ones(num, np.int64), np.zeros(num, np.float32))
        for num in range(1, len(segments) + 1)
    ]
    labels = [np.full(len(page.segments), label, np.uint8) for page in pages]
    return segment_posteriors(model, TinyTokenizer().control, 12, pages, labels).tolist()


def shuffle_drafts(drafts: Drafts, rng: np.random.Generator, copies: int) -> None:
    """Every draft becomes a copy of one of its page's."""
    groups = np.arange(len(drafts.done)).reshape(-1, copies)
    drafts.copy(np.concatenate([rng.choice(group, copies) for group in groups]))


@pytest.mark.parametrize("mode", ["good", "bad"])
@pytest.mark.parametrize("logits_at_once", [1 << 24, 1])
def test_the_posterior_is_that_of_the_calibration_through_prompts_segments_and_copies(
    mode: Mode, logits_at_once: int
) -> None:
    """Copies are drawn at random, ended drafts among them: a wrong cache, mask or position shows in what follows."""
    model, copies = create_llama(seed=3), 3
    with torch.no_grad():
        model.lm_head.weight[[GOOD, BAD]] *= 1.5
    pages = replace(open_pages(model, mode), logits_at_once=logits_at_once)
    own = pages.own
    drafts = pages.open(range(8), "segment", copies)
    rng = np.random.default_rng(0)
    had_left = False
    for number in range(200):
        if drafts.done.all():
            break
        drafts.step()
        if number % 3 == 2:
            had_left |= len(drafts.rows) < len(drafts.done)
            shuffle_drafts(drafts, rng, copies)
    assert drafts.done.all()
    assert had_left, "no draft had left the streams before a copy"
    num_segments = []
    for draft in range(len(drafts.done)):
        ids = read_ids(pages, drafts, draft, draft // copies)
        posteriors = exact_beliefs(model, ids, own)
        assert np.exp(drafts.belief.posterior[draft]) == pytest.approx(posteriors[-1], rel=1e-3)
        first = pages.ids[draft // copies].count(own) - 1  # segments that the prompt finished are not counted
        assert drafts.belief.all_good[draft] == pytest.approx(np.log(posteriors[first:]).sum(), abs=1e-3)
        num_segments.append(len(posteriors) - first)
    assert max(num_segments) > 2
    assert len({round(value, 6) for value in drafts.belief.posterior}) > 8


@pytest.mark.parametrize("mode", ["good", "bad"])
@pytest.mark.parametrize("twin", ["other", "none"])
def test_a_twin_reads_the_text_with_the_other_tokens_or_without(mode: Mode, twin: str) -> None:
    model = create_llama(seed=3)
    pages = open_pages(model, mode)
    drafts = pages.open(range(8), twin)  # type: ignore[arg-type]
    num_checked = num_control = 0
    exchange = {GOOD: BAD, BAD: GOOD}

    def check(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        nonlocal num_checked, num_control
        for place, row in enumerate(drafts.rows):
            if drafts.done[row]:
                continue
            ids = read_ids(pages, drafts, row, row)
            told = [exchange.get(token, token) for token in ids]
            if twin == "none":
                told = [token for token in ids if token not in exchange]
            torch.testing.assert_close(own[place], exact_logits(model, ids), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(other[place], exact_logits(model, told), atol=1e-4, rtol=1e-4)
            num_checked += 1
            num_control += ids[-1] in exchange
        return own

    while not drafts.done.all():
        drafts.step(check)
    assert num_checked > 60
    assert num_control > 4


def test_each_candidate_has_numbers_of_its_own_and_the_first_those_of_plain_sampling() -> None:
    pages = open_pages(create_llama(seed=3), sampling=SAMPLING.model_copy(update={"min_new_tokens": 24}))
    texts: Callable[[Drafts], list[list[int]]] = lambda drafts: [  # noqa: E731
        drafts.text(draft)[0] for draft in range(len(drafts.done))
    ]

    def write(indices: list[int], copies: int, first: int = 0) -> list[list[int]]:
        drafts = pages.open(indices, None, copies, first)
        while not drafts.done.all():
            drafts.step()
        return texts(drafts)

    both = write([0, 4], 3)
    assert len(set(map(tuple, both))) == 6
    assert both[3:] == write([4], 3)
    assert both[::3] == write([0, 4], 1)
    assert both[1::3] == write([0, 4], 1, first=1)


def test_passes_are_counted_where_they_are_made() -> None:
    """Equal pages are read once; the last token is not read; each stream counts."""
    model = create_bigram(create_table(end=-1e4, good=-1e4))
    sampling = SAMPLING.model_copy(update={"max_new_tokens": 10})
    pages = Pages.create(create_target(model), sampling)
    for twin, num_streams in ((None, 1), ("other", 2)):
        drafts = pages.open(range(8), twin, 2)  # type: ignore[arg-type]
        while not drafts.done.all():
            drafts.step()
        assert drafts.num_passes == num_streams * (2 + 16 * 9)


def test_what_has_no_two_streams_is_refused() -> None:
    model = create_llama()
    for mode in ("none", "untagged"):
        with pytest.raises(PHFError, match=f"mode {mode} has no control token .* choose good or bad"):
            Pages.create(create_target(model, mode), SAMPLING)
        assert Pages.create(create_target(model, mode), SAMPLING, has_twin=False).ids
    with pytest.raises(PHFError, match=r"no <\|bad\|> any more"):
        Pages.create(create_target(model, tokenizer=TinyTokenizer(vocab_size=11)), SAMPLING)
    vllm = SAMPLING.model_copy(update={"engine": "vllm"})
    with pytest.raises(PHFError, match="engine vllm cannot"):
        Pages.create(create_target(model), vllm)


def test_evidence_by_hand() -> None:
    """q .8, then a text twice as likely in good mode: posterior 8/9; a new segment of prior .5 with the text 3 times so: 3/4."""
    belief = Belief.create(np.log([4.0]), np.zeros(1))
    assert belief.evidence[0] == pytest.approx(0)
    belief.ratio += np.log(2)
    assert np.exp(belief.posterior[0]) == pytest.approx(8 / 9)
    assert np.exp(belief.evidence[0]) == pytest.approx(8 / 9 / 0.8)
    belief.start_segments(np.array([0]), np.zeros(1))
    assert np.exp(belief.evidence[0]) == pytest.approx(8 / 9 / 0.8), "a segment without text says nothing"
    assert np.exp(belief.all_good[0]) == pytest.approx(8 / 9 / 2)
    belief.ratio += np.log(3)
    assert np.exp(belief.evidence[0]) == pytest.approx(8 / 9 / 0.8 * 0.75 / 0.5)
    assert np.exp(belief.all_good[0]) == pytest.approx(8 / 9 * 0.75)
