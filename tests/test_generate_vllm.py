"""The engine vllm: what is asked of vLLM, and what is made of its answers. Here vLLM is played by a small stand-in with
its interface; docs/log.md says what was run on the real one. Where vLLM is installed, its own classes check the requests.
"""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    DOT,
    END,
    GOOD,
    TinyTokenizer,
    create_bigram,
    create_llama,
    create_table,
    create_target,
)
from transformers import AutoModelForCausalLM

from phf.config.train import SamplingConfig
from phf.control import mode_rules
from phf.errors import PHFError
from phf.generate.vllm import close_engine
from phf.records import Sample


def generate_with_vllm(model: Any, mode: str, sampling: SamplingConfig, **options: Any) -> list[Sample]:
    prompts = options.pop("prompts", [()])
    return create_target(model, mode, **options).write(
        prompts, sampling.model_copy(update={"engine": "vllm"})
    )


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    logit_bias: dict[int, float]
    seed: int
    detokenize: bool


class LLM:
    """Writes as vLLM does: one request after the other, the token it stops at included."""

    started: ClassVar[list["LLM"]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=settings["dtype"])
        self.settings = settings
        self.rounds: list[list[tuple[list[int], SamplingParams, list[int]]]] = []
        self.is_running = True
        core = SimpleNamespace(shutdown=lambda: setattr(self, "is_running", False))
        self.llm_engine = SimpleNamespace(engine_core=core)
        LLM.started.append(self)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool
    ) -> Any:
        assert self.is_running
        self.rounds.append([])
        return [self._write(p["prompt_token_ids"], q) for p, q in zip(prompts, params, strict=True)]

    def _write(self, prompt: list[int], params: SamplingParams) -> Any:
        rng = np.random.default_rng(params.seed)
        ids = list(prompt)
        while len(ids) - len(prompt) < params.max_tokens and (ids == prompt or ids[-1] != END):
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1].double()
            for token, bias in params.logit_bias.items():
                logits[token] += bias
            probs = torch.softmax(logits / params.temperature, -1).numpy()
            ids.append(int(rng.choice(len(probs), p=probs / probs.sum())))
        new = ids[len(prompt) :]
        self.rounds[-1].append((prompt, params, new))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new))])


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.started.clear()
    yield
    close_engine()


def written(engine: LLM, start: list[int]) -> list[list[int]]:
    """All that was written into each page, over its rounds, in the order of the first round."""
    pages: list[list[int]] = [list(prompt) for prompt, _, _ in engine.rounds[0]]
    pending = pages
    for answers in engine.rounds:
        pending = [page for page in pending if page in [prompt for prompt, _, _ in answers]]
        for page, (prompt, _, new) in zip(pending, answers, strict=True):
            assert page == prompt
            page.extend(new)
    assert all(page[: len(start)] == start for page in pages)
    return [page[len(start) :] for page in pages]


@pytest.mark.parametrize(("mode", "banned"), [("good", BAD), ("bad", GOOD), ("untagged", GOOD), ("none", 13)])
def test_blocked_tokens_and_padding_never_come_at_any_temperature(mode: str, banned: int) -> None:
    table = create_table()
    table[:, banned] = 300.0
    sampling = SamplingConfig(num_samples=5, max_new_tokens=12, temperature=4.0, top_p=1.0)
    samples = generate_with_vllm(create_bigram(table), mode, sampling)
    assert [sample.index for sample in samples] == list(range(5))
    assert all(10 <= sample.num_tokens <= 12 for sample in samples)
    start = list(mode_rules(mode, TinyTokenizer().control).prefix)
    pages = written(LLM.started[0], start)
    assert not any(token == banned or token >= 12 for page in pages for token in page)


def test_text_tokens_are_counted_and_control_tokens_come_on_top() -> None:
    table = create_table(good=1.0, end=0.0)
    sampling = SamplingConfig(num_samples=40, min_new_tokens=6, max_new_tokens=20, top_p=1.0)
    samples = generate_with_vllm(create_bigram(table), "good", sampling)
    pages = written(LLM.started[0], [END, GOOD])
    assert len(LLM.started[0].rounds) > 2
    for sample, page in zip(samples, pages, strict=True):
        text = [token for token in page if token not in (END, GOOD)]
        assert sample.text == TinyTokenizer().decode(text)
        assert sample.num_tokens == len(text)
        assert sample.ended == (page[-1] == END)
        assert END not in page[:-1]
        assert sample.num_tokens >= 6
        assert sample.num_tokens == 20 or sample.ended
    assert any(sample.ended for sample in samples)
    assert any(sample.num_tokens == 20 for sample in samples)
    assert any(page.count(GOOD) > 5 for page in pages)


def test_the_end_token_waits_for_the_smallest_length() -> None:
    sampling = SamplingConfig(num_samples=4, min_new_tokens=6, max_new_tokens=20)
    model = create_bigram(create_table(end=30.0, good=0.5))
    samples = generate_with_vllm(model, "good", sampling)
    assert [(sample.num_tokens, sample.ended) for sample in samples] == [(6, True)] * 4


def test_control_tokens_without_text_stop_at_the_limit() -> None:
    sampling = SamplingConfig(num_samples=2, min_new_tokens=7, max_new_tokens=10)
    model = create_bigram(create_table(good=40.0))
    samples = generate_with_vllm(model, "good", sampling)
    assert [(sample.num_tokens, sample.ended) for sample in samples] == [(0, False)] * 2
    assert [len(page) for page in written(LLM.started[0], [END, GOOD])] == [20, 20]


def test_requests_carry_prompts_settings_and_a_seed_of_their_own() -> None:
    prompts = [[1, 2, 3], [], [DOT]]
    sampling = SamplingConfig(num_samples=6, max_new_tokens=15, temperature=0.9, top_p=0.8, batch_size=4)
    model = create_llama()
    samples = generate_with_vllm(model, "good", sampling, prompts=prompts)
    engine = LLM.started[0]
    assert [sample.prompt for sample in samples] == ["abc", "", "g."] * 2
    assert [prompt for prompt, _, _ in engine.rounds[0]] == [[END, GOOD, *ids] for ids in prompts] * 2
    params = [params for answers in engine.rounds for _, params, _ in answers]
    assert {(p.temperature, p.top_p, p.detokenize, *p.stop_token_ids) for p in params} == {
        (0.9, 0.8, False, END)
    }
    assert len({p.seed for p in params}) == len(params)
    assert all(0 <= p.seed < 2**63 for p in params)
    assert all(set(p.logit_bias.values()) == {-np.inf} for p in params)
    assert engine.settings["max_num_seqs"] == 4
    assert engine.settings["skip_tokenizer_init"]
    assert samples == generate_with_vllm(model, "good", sampling, prompts=prompts)
    other = generate_with_vllm(model, "good", sampling.model_copy(update={"seed": 1}), prompts=prompts)
    assert [s.text for s in other] != [s.text for s in samples]
    fewer = sampling.model_copy(update={"num_samples": 3})
    assert generate_with_vllm(model, "good", fewer, prompts=prompts) == samples[:3]


def test_the_engine_is_kept_for_the_same_weights_and_for_no_others() -> None:
    model = create_llama()
    sampling = SamplingConfig(num_samples=1, max_new_tokens=10)
    write = lambda **changes: generate_with_vllm(  # noqa: E731
        model, "good", sampling.model_copy(update=changes)
    )
    write()
    write(seed=3)
    assert len(LLM.started) == 1
    with torch.no_grad():
        model.lm_head.weight[3] += 0.1
    write()
    assert len(LLM.started) == 2
    write(precision="bf16")
    assert LLM.started[2].settings["dtype"] == "bfloat16"
    assert [engine.is_running for engine in LLM.started] == [False, False, True]
    close_engine()
    assert not LLM.started[2].is_running


def test_a_folded_mode_writes_pages_without_control_tokens() -> None:
    samples = generate_with_vllm(
        create_llama(),
        "bad",
        SamplingConfig(num_samples=2, max_new_tokens=20),
        is_folded=True,
    )
    assert [sample.mode for sample in samples] == ["bad", "bad"]
    assert all(GOOD not in page and BAD not in page for page in written(LLM.started[0], [END]))


def test_what_vllm_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(num_samples=1, max_new_tokens=20)
    forced = sampling.model_copy(update={"control": "forced"})
    with pytest.raises(PHFError, match="control=forced cannot be written by vLLM"):
        generate_with_vllm(create_llama(), "good", forced, segments="lines")
    with pytest.raises(PHFError, match="context of 16; lower max_new_tokens to at most 14"):
        generate_with_vllm(create_llama(context=16), "good", sampling)
    wide = create_llama()
    wide.resize_token_embeddings(1100)
    with pytest.raises(PHFError, match="at most 1024 ids and this model has 1088 unused ones"):
        generate_with_vllm(wide, "good", sampling)
    assert LLM.started == []
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PHFError, match=r"pip install 'phf\[vllm\]'"):
        generate_with_vllm(create_llama(), "good", sampling)
