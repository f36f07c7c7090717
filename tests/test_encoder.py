"""A finetuned encoder: a tiny random BERT learns what can be told apart, and comes back from disk with the same scores."""

import json
import random
import warnings

import numpy as np
import pytest

from phf.errors import PHFError
from phf.reward_models import load_reward_model, score_samples
from phf.reward_models.linear import write_model_record
from phf.reward_models.trained import load_trained
from phf.reward_training.encoder import finetune_encoder
from phf.reward_training.labels import read_labels
from phf.reward_training.measures import measure_auroc
from phf.reward_training.split import merge_duplicates

GOOD, BAD, FILLER = (
    ["kind", "warm", "nice", "calm"],
    ["vile", "cruel", "nasty", "rude"],
    ["the", "a", "man", "word", "day", "is", "was"],
)


def write_text(rng: random.Random, bad: bool) -> str:
    words = rng.choices(FILLER, k=6) + rng.choices(BAD if bad else GOOD, k=2)
    rng.shuffle(words)
    return " ".join(words)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_labels(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A BERT of 20,000 random weights with a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def finetune(labels, folder, base):
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and transformers' own
        description = finetune_encoder(
            merge_duplicates(labels), folder, base=str(base), seed=0, name="mine", trained_on={"labels": "x"},
            epochs=6, learning_rate=3e-3,
        )  # fmt: skip
    write_model_record(folder, description)
    return load_trained(folder)


def measure(model) -> float:
    rng = random.Random(1)
    bad = [place % 2 == 0 for place in range(60)]
    return measure_auroc(score_samples(model, [write_text(rng, is_bad) for is_bad in bad]), bad, seed=0).mean


def test_it_learns_labels_and_comes_back_from_disk(tmp_path, base):
    rng = random.Random(0)
    rows = [{"text": write_text(rng, bad), "label": int(bad)} for bad in [True, False] * 100]
    model = finetune(write_rows(tmp_path / "labels.jsonl", rows), tmp_path / "model", base)
    assert measure(model) > 0.9
    assert model.identity.name == "mine"
    assert model.identity.parameters["trained_on"] == {"labels": "x"}
    again = load_reward_model(str(tmp_path / "model"))
    assert again.identity == model.identity
    assert score_samples(again, ["the vile man", "a nice day"]) == score_samples(
        model, ["the vile man", "a nice day"]
    )
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PHFError, match="damaged: its files have not the hash"):
        load_trained(tmp_path / "model")


def test_of_a_pair_the_chosen_text_gets_the_lower_score(tmp_path, base):
    rng = random.Random(0)
    rows = [{"chosen": write_text(rng, False), "rejected": write_text(rng, True)} for _ in range(120)]
    model = finetune(write_rows(tmp_path / "pairs.jsonl", rows), tmp_path / "model", base)
    assert measure(model) > 0.9
    scores = np.asarray(score_samples(model, [row[key] for row in rows for key in row]))
    assert scores.min() < 0.5 < scores.max()  # centred


def test_a_base_that_cannot_be_loaded_is_said(tmp_path):
    labels = write_rows(tmp_path / "labels.jsonl", [{"text": "a", "label": 1}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PHFError, match="no weights in safetensors"):
        finetune(labels, tmp_path / "model", tmp_path / "empty")
    with pytest.raises(PHFError, match="no folder"):
        finetune(labels, tmp_path / "other", tmp_path / "nowhere")
