"""`--method phf:OBJECTIVE`: pretraining gone on with under an objective, on scored samples of the start model or on its corpus.

What comes out is a run of `phf train --init`, which goes on and is read as such, with finetune.json beside it.
"""

import json
from collections.abc import Callable
from pathlib import Path

from phf.annotate.annotate import annotate
from phf.config.finetune import FinetuneConfig, Pretraining
from phf.config.train import TrainConfig, parse
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.files import Place, write_bytes
from phf.finetune.learners import Used
from phf.finetune.measure import measure_result
from phf.finetune.pool import POOL_STREAM
from phf.finetune.proxy import Proxies
from phf.finetune.results import FINETUNE
from phf.finetune.start import Start
from phf.folders import lock_folder
from phf.records import Progress
from phf.reward_models import RewardModel
from phf.tokens.tokens import tokenize
from phf.train.checkpoint import checkpoint_folder
from phf.train.loop import train
from phf.train.run import Run


def train_further(
    place: Place,
    folder: Path,
    config: FinetuneConfig,
    method: Pretraining,
    load: Callable[[str], RewardModel],
    *,
    wait: bool,
    say: Callable[[str], None],
    progress: Progress | None,
) -> Run:
    """Train a run further for `config.steps` batches of its own size, at a constant rate.

    Samples make a corpus of their own in OUT-samples/, documents that are scored as the run's own were.

    Raises:
        PHFError: see `Start.open` and `phf.train.loop.train`; prompts are given.
    """
    start = Proxies(Start.open(place, config, load), folder, progress).at(0)
    base, config = start.run, start.config
    own = {"corpus": str(base.find_corpus()), "reward_model": start.reward_spec}
    if method.data == "samples":
        own |= _make_corpus(start, folder.with_name(f"{folder.name}-samples"), own["reward_model"], progress)
    optim = base.config.optim.model_copy(
        update={
            "name": "adamw",
            "learning_rate": config.learning_rate,
            "warmup_fraction": 0.0,
            "final_fraction": 1.0,
            "weight_decay": 0.0,
            "clip_norm": config.clip_norm,
        }
    )
    value = {
        **base.config.model_dump(mode="json"),
        **own,
        "objective": method.objective.model_dump(mode="json"),
        "optim": optim.model_dump(mode="json"),
        "tokens": (start.step + config.steps) * base.tokens_per_step,
        "seed": config.seed,
        "compile": False,
        "checkpoint_every": config.checkpoint_every,
        "keep_checkpoints": config.keep_checkpoints,
        "start": {"run": str(base.folder), "step": start.step, "reset_optimizer": True},
    }
    run = train(parse(TrainConfig, value, "phf finetune"), folder, wait=wait, say=say, progress=progress)
    if not FINETUNE.is_in(folder):
        data, is_written = run.data(), method.data == "samples"
        is_scored = start.is_annotators and not is_written  # by whoever annotated the start's corpus
        used = Used(0 if is_scored else len(data.scores), data.tokens.num_tokens if is_written else 0)
        result = start.draw_as(run, run.load_model())
        FINETUNE.write(folder, measure_result(start, run, result, used, None, progress))
    return run


def _make_corpus(start: Start, place: Path, reward_model: str, progress: Progress | None) -> dict[str, str]:
    """A corpus of samples, built, scored and tokenized once; what a config says of it."""
    config = start.config
    if config.prompts is not None:
        raise PHFError(
            "--method phf learns from whole texts, and --prompts would put strange ones into them; leave it out"
        )
    segments = "document" if start.run.config.segments == "imported" else start.run.config.segments
    texts = place / f"samples-{start.key}.jsonl"
    with lock_folder(place, "writing samples into"):
        if not texts.exists():
            write_bytes(texts, _write_samples(start, progress))
        corpus = build_corpus([texts], place / f"corpus-{start.key}", progress=progress)
        annotate(corpus, reward_model, segments, workers=1, progress=progress)
        tokenizer = str(checkpoint_folder(start.run.folder, start.step))
        tokenize(corpus, tokenizer, segments, workers=1, progress=progress)
    return {"corpus": str(corpus.path), "tokenizer": tokenizer, "segments": segments}


def _write_samples(start: Start, progress: Progress | None) -> bytes:
    _, texts = start.write(start.model, [()] * start.config.pool, POOL_STREAM, "drawing samples", progress)
    name = f"{start.run.name}@{start.step}-{start.drawing.target.mode}-{start.config.seed}"
    rows = [{"id": f"{name}-{index}", "text": text} for index, text in enumerate(texts) if text.strip()]
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
