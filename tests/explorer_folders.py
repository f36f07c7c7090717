"""A corpus and a run to explore: small, real, and full of text that wants to break a page."""

import json

from fake_annotations import annotate_by

from phf.config.train import TrainConfig, parse
from phf.corpus.store import build_corpus
from phf.evaluate.rollouts import encode_samples
from phf.evaluate.suite import list_measures
from phf.explore.explorer import open_explorer
from phf.files import hash_file
from phf.records import Estimate, Identity, Sample
from phf.results import Evaluation, Judge, Measurement, write_evaluation
from phf.tokens.tokens import tokenize
from phf.train import loop

LONG = (
    "bad9 " + "long line " * 110_000 + "needle near the end"
)  # whose hash puts it into the validation split
HOSTILE = [
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\nbad8 </article></div> & so on\n",
    "${document.title='owned'} {{7*7}} {% raw %} `tick`\nbad5 \u202eesrever\u202c \u200bhidden\n",
    "مرحبا بالعالم، هذا نص من اليمين إلى اليسار\nbad7 שלום עולם\n",
    LONG,
]
WORDS = ["red", "old", "third", "quiet", "green", "small", "late", "plain"]
THINGS = ["fox", "king", "engineer", "poet", "train", "river", "letter", "garden"]
JUDGE = Identity("word-count", "1")


def score(segment):
    """`badN` anywhere scores 0.N, all else 0.05."""
    place = segment.find("bad")
    return int(segment[place + 3]) / 10 if place >= 0 else 0.05


def make_corpus(folder, *, annotated=True):
    texts = [
        f"The {word} {thing} waits number {number}.\nbad{number % 10} {word}\n"
        for number, (word, thing) in enumerate((w, t) for w in WORDS for t in THINGS)
    ]
    source = folder.parent / f"{folder.name}.jsonl"
    rows = [{"id": f"doc:{place}", "text": text} for place, text in enumerate([*HOSTILE, *texts])]
    source.write_text("\n".join(map(json.dumps, rows)))
    corpus = build_corpus([str(source)], folder, validation_fraction=0.2)
    if annotated:
        annotate_by(corpus, JUDGE, "lines", score, unit="probability")
    return corpus


def make_run(corpus, folder, objective=None):
    """A run of forty steps, after which it writes control tokens."""
    tokenize(corpus, "train:300", "lines", workers=1)
    config = {
        "corpus": str(corpus.path), "reward_model": JUDGE.name, "segments": "lines", "tokenizer": "train:300",
        "objective": objective or {"kind": "conditional", "threshold": 0.4}, "good": {"threshold": 0.4},
        "model": {"preset": "1M", "layers": 1, "width": 32, "heads": 2}, "data": {"context": 128},
        "optim": {"batch_blocks": 2, "learning_rate": 2e-2}, "tokens": 40 * 2 * 128, "precision": "fp32", "compile": False,
        "validate_every": 0, "validation_blocks": 1, "checkpoint_every": 0,
    }  # fmt: skip
    return loop.train(parse(TrainConfig, config, "test"), folder, say=lambda line: None)


def add_evaluation(run):
    """Samples in three modes, as `phf evaluate` leaves them."""
    texts = [*HOSTILE, "a plain sample"]
    samples = [
        Sample(mode, index, text, 5, True, "<i>prompt") for mode in ("good", "bad", "none") for index, text in enumerate(texts)
    ]  # fmt: skip
    scores = [0.1 + 0.2 * sample.index for sample in samples]
    scores[-1] = float("nan")
    content = encode_samples([("unprompted", sample) for sample in samples], {JUDGE.slug: scores})
    (run.folder / "samples.parquet").write_bytes(content)
    judge = Judge(JUDGE.slug, "annotator", "probability", 1, 0.5, JUDGE)
    rows = []
    for mode in ("good", "bad", "none"):
        rows.append(Measurement("score", Estimate(0.5, 0.4, 0.6, 5), mode, judge.slug))
        rows.append(Measurement("hit_rate", Estimate(0.4, 0.2, 0.6, 5), mode, judge.slug))
    evaluation = Evaluation(
        run.folder.name, "conditional", seed=0, step=1, tokens_seen=1, num_parameters=1, judges=[judge], config={},
        threshold=0.4, notes=[], samples_sha256=hash_file(run.folder / "samples.parquet"), measures=list_measures(rows),
        measurements=rows,
    )  # fmt: skip
    write_evaluation(run.folder / "evaluation.json", evaluation)


def explore(place, tmp_path):
    return open_explorer(place, tmp_path / "l.jsonl", "label")


def show(explorer, slug, *, threshold=0.4, query="", order="corpus order", page=0):
    return explorer.show_documents(slug, threshold, query, order, page, True)
