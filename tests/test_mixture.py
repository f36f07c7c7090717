"""Blocks of other corpora among a run's own: how many, in which order, under whose thresholds, and what they cost."""

import numpy as np
import pytest

from phf.annotate.annotate import annotate
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.records import NO_LABEL
from phf.tokens.mixture import MixedBlocks
from phf.tokens.tokens import tokenize
from phf.train.data import open_data
from phf.train.loop import train
from phf.train.run import Run


@pytest.fixture(scope="module")
def others(small_corpus, tmp_path_factory):
    """Two small corpora of other text, scored and tokenized as the first one."""
    tokenizer = next((small_corpus.path / "tokens").iterdir()) / "tokenizer"
    found = []
    for number, part in enumerate(("you are a fucking idiot, damn you", "a plain remark about trees")):
        folder = tmp_path_factory.mktemp("others")
        (folder / "a.jsonl").write_text(
            "".join(f'{{"text": "{part} {index} {part}"}}\n' for index in range(20))
        )
        corpus = build_corpus([folder / "a.jsonl"], folder / f"corpus-{number}", validation_fraction=0)
        annotate(corpus, "toxicity-svm", "document", workers=1)
        tokenize(corpus, tokenizer, "document", workers=1)
        found.append(corpus)
    return found


def mix(others, *more: str) -> list[str]:
    return [f"mix.corpora=[{', '.join(str(corpus.path) for corpus in others)}]", *more]


def test_the_share_is_exact_and_the_runs_own_blocks_go_on_as_without(small_config, others) -> None:
    plain, data = open_data(small_config()), open_data(small_config(*mix(others, "mix.share=0.25")))
    alone, mixed = plain.training_blocks(), data.training_blocks()
    batch = mixed.rows(np.arange(40))
    theirs = [(row + 1) * 0.25 // 1 > row * 0.25 // 1 for row in range(40)]
    assert sum(theirs) == 10
    assert np.array_equal(batch.ids[~np.array(theirs)], alone.rows(np.arange(30)).ids)
    for number, other in enumerate(data.mixed):
        assert np.array_equal(
            batch.ids[np.flatnonzero(theirs)[number::2]], other.active_blocks.rows(np.arange(5)).ids
        )
    assert np.array_equal(mixed.rows(np.array([7, 21])).ids, batch.ids[[7, 21]])
    assert mixed.place(40) == alone.place(30)
    later = MixedBlocks(
        [(0, plain.active_blocks)],
        [data.mixed[0].active_blocks],
        0.5,
        first_row=8,
        first_epoch=alone.place(8),
    )
    assert np.array_equal(later.rows(np.array([8, 10])).ids, alone.rows(np.array([8, 9])).ids)
    assert later.place(12) == alone.place(10)


def test_labels_are_by_the_runs_own_thresholds(small_config, others) -> None:
    data = open_data(small_config(*mix(others)))
    bad, good = data.mixed
    assert bad.objective.threshold == data.objective.threshold == good.objective.threshold
    assert set(bad.objective.rule.labels) != set(good.objective.rule.labels)
    assert (bad.scores > data.threshold.value).all()
    assert (good.scores <= data.threshold.value).all()


def test_without_scores_they_cost_what_mle_does(small_config, others, tmp_path) -> None:
    config = small_config("objective.kind=rwr", "objective.beta=0.5", *mix(others, "mix.scored=false"))
    run = train(config, tmp_path / "run", say=lambda line: None)
    losses = [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]
    assert np.isfinite(losses).all()
    batch = run.data().training_blocks().batch(0, 4)
    assert batch.is_active.tolist() == [True, False, True, False]
    labelled = open_data(small_config(*mix(others, "mix.scored=false"))).training_blocks().batch(0, 4)
    assert (labelled.labels[~labelled.is_active] == NO_LABEL).all()
    assert (labelled.labels[labelled.is_active] != NO_LABEL).any()


def test_a_run_knows_its_other_corpora_and_goes_on_as_if_not_stopped(small_config, others, tmp_path) -> None:
    config = small_config(*mix(others), "checkpoint_every=4", "keep_checkpoints=all")
    run = train(config, tmp_path / "run", say=lambda line: None)
    assert [known["corpus"] for known in run.record["mix"]] == [corpus.id for corpus in others]
    assert run.data().training_blocks().place(48) == pytest.approx(24 / run.data().active_blocks.num_blocks)
    with pytest.raises(PHFError, match=r"has no annotation by nothing on document"):
        open_data(small_config(*mix(others, "mix.reward_model=nothing")))
    untokenized = build_corpus([others[0].path.parent / "a.jsonl"], tmp_path / "new", validation_fraction=0)
    annotate(untokenized, "toxicity-svm", "document", workers=1)
    config = small_config(*mix([untokenized]))
    with pytest.raises(PHFError, match=r"phf tokenize .* --tokenizer .*train-512@.*tokenizer"):
        open_data(config)
    assert Run.open(run.folder).config.mix.share == 0.5
