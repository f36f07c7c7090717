"""Guidance, lookahead and sequential Monte Carlo on real runs, beside plain good mode, at equal numbers of samples.

    quiet env OMP_NUM_THREADS=1 python benchmarks/steer_streams.py RUN... --mle MLE_RUN... [--num-samples 256]

One line of JSON for each run and method: score by the annotator and by the held-out judge, the same of the first 80
characters alone (no method gains there by writing less), degeneracy, bits per byte of the samples by an MLE run (what no
mode was steered by), passes a token and the method's own figures.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from phf.config.steer import SMC, Guidance, Lookahead
from phf.config.train import SamplingConfig
from phf.evaluate.measures.degeneracy import measure_degeneracy
from phf.evaluate.pages import Page, mode_labels, segment_nll
from phf.generate.target import Target
from phf.intervals import bootstrap_mean, bootstrap_ratio
from phf.records import Mode, Sample
from phf.reward_models import load_reward_model, score_samples
from phf.steer.guidance import generate_guided
from phf.steer.lookahead import generate_with_lookahead
from phf.steer.smc import generate_smc
from phf.steer.streams import Steered
from phf.train.run import Run

JUDGES = {name: load_reward_model(name) for name in ("toxicity-svm", "toxicity-lstm")}
OPENING = 80


def score(texts: Sequence[str]) -> np.ndarray:
    """The annotator's scores."""
    return np.asarray(score_samples(JUDGES["toxicity-svm"], list(texts)), np.float64)


def list_methods(run: Run, sampling: SamplingConfig) -> dict[str, Callable[[], Steered]]:
    """Every way to write, by name."""
    model, tokenizer = run.load_model(), run.load_tokenizer()
    methods: dict[str, Callable[[], Steered]] = {}
    modes: tuple[Mode, ...] = ("good", "bad")
    for mode in modes:
        target = Target(mode, model, tokenizer, run.config.segments)
        methods[mode] = lambda target=target: Steered(target.write([()], sampling), 1.0)
        for against in ("other", "none"):
            for scale in (1.5, 2.0, 3.0):
                config = Guidance(scale=scale, against=against)
                methods[f"{mode}, guidance {scale} against {against}"] = lambda target=target, config=config: (
                    generate_guided(target, sampling, config)
                )
        for tokens in (8, 1000):
            look = Lookahead(width=4, tokens=tokens)
            methods[f"{mode}, lookahead 4 x {tokens}"] = lambda target=target, look=look: (
                generate_with_lookahead(target, sampling, look)
            )
        for ess in (None, 0.5, 0.95):
            smc = SMC(twist=ess is not None, ess=ess or 0.5)
            name = f"{mode}, smc" if ess is None else f"{mode}, smc with twist, ess {ess}"
            methods[name] = lambda target=target, smc=smc: generate_smc(target, sampling, smc, score)
    return methods


def typicality(mle: Run, samples: Sequence[Sample]) -> object:
    """Bits per byte of the samples by another model, as whole pages."""
    model, tokenizer = mle.load_model(), mle.load_tokenizer()
    texts = [sample.text for sample in samples if sample.text.strip()]
    ids = [np.array(tokenizer.encode(text)) for text in texts]
    pages = [
        Page((own,), np.zeros(1, np.float32), np.array([len(text.encode())]))
        for own, text in zip(ids, texts, strict=True)
    ]
    nll = segment_nll(model, tokenizer.control, tokenizer.vocab_size, pages, mode_labels(pages, "none"))
    bits = [float(value[0]) / np.log(2) for value in nll]
    return bootstrap_ratio(bits, [len(text.encode()) for text in texts], 1000, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--mle", nargs="+", required=True)
    parser.add_argument("--num-samples", type=int, default=256)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder, reference in zip(arguments.runs, arguments.mle, strict=True):
        sampling = SamplingConfig(num_samples=arguments.num_samples)
        for name, write in list_methods(Run.open(folder), sampling).items():
            if arguments.only not in name:
                continue
            start = time.process_time()
            steered = write()
            seconds = time.process_time() - start
            texts = [sample.text for sample in steered.samples]
            row = {
                "run": folder,
                "method": name,
                "passes": steered.passes_per_token,
                "seconds": seconds,
                "facts": steered.facts,
            }
            for judge, model in JUDGES.items():
                for part, end in (("", None), ("@80", OPENING)):
                    found = bootstrap_mean(score_samples(model, [text[:end] for text in texts]), 1000, 0)
                    row[judge + part] = [found.mean, found.low, found.high, found.count]
            signs = measure_degeneracy(steered.samples)
            row |= {"tokens": signs.mean_tokens, "ended": signs.ended_share, "distinct_2": signs.distinct_2}
            row |= {"repetition": signs.repetition}
            bits = typicality(Run.open(reference), steered.samples)
            row["bits"] = [bits.mean, bits.low, bits.high]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
