"""`hf:` on small classifiers made here, held against transformers' own text-classification pipeline."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import huggingface_hub
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from phf.errors import PHFError
from phf.reward_models import catalogue, hugging_face, load_reward_model, score_documents, score_samples
from phf.reward_models.hugging_face import find_snapshot

PARAGRAPHS = [part for topic in topics.values() for part in topic.split("\n\n") if part.strip()][:80]
SHORT = [text for text in PARAGRAPHS if len(text) < 150][:30]
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
JIGSAW = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


@pytest.fixture(scope="module")
def tokenizer():
    # The vocabulary is written down, not trained: `WordPieceTrainer` breaks ties otherwise in each process, and with it
    # the answers of a random model.
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    found = Counter(word for text in PARAGRAPHS for word, _ in cut(text.lower()))
    letters = sorted({letter for word in found for letter in word})
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    common = [word for word in sorted(found, key=lambda word: (-found[word], word)) if len(word) > 1]
    pieces = [*known, *common][:600]
    words = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


@pytest.fixture(scope="module")
def make(tmp_path_factory, tokenizer):
    """Saves a small BERT with these labels; random weights that spread its answers."""

    def make_classifier(labels, name="classifier", seed=0, **options):
        folder = tmp_path_factory.mktemp("hub") / name
        torch.manual_seed(seed)
        named = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        config = BertConfig(
            vocab_size=600, max_position_embeddings=64, initializer_range=0.3, **TINY, **named, **options
        )
        model = BertForSequenceClassification(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make_classifier


@pytest.fixture(scope="module")
def binary(make):
    return make(["fine", "toxic"])


def classify(folder, texts, **options):
    """transformers' own answers: for each text a probability per label."""
    answers = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)(texts, **options)
    return [{answer["label"]: answer["score"] for answer in row} for row in answers]


def test_probabilities_are_those_of_transformers(binary):
    model = load_reward_model(f"hf:{binary}")
    expected = [row["toxic"] for row in classify(binary, SHORT)]
    assert np.std(expected) > 0.02
    assert score_samples(model, SHORT) == pytest.approx(expected, abs=2e-6)
    assert (model.unit, model.display_scale, model.hit_threshold) == ("probability", 1.0, 0.5)
    document, ends = SHORT[0] + SHORT[1], [len(SHORT[0]), len(SHORT[0] + SHORT[1])]
    assert model.score(document, ends) == pytest.approx(expected[:2], abs=2e-6)


def test_labels_that_exclude_each_other_are_summed(make):
    folder = make(["neutral", "hate", "offensive"])
    rows = classify(folder, SHORT)
    both = score_samples(load_reward_model(f"hf:{folder}#hate,offensive"), SHORT)
    assert both == pytest.approx([row["hate"] + row["offensive"] for row in rows], abs=2e-6)
    assert score_samples(load_reward_model(f"hf:{folder}#-neutral"), SHORT) == both
    assert max(both) <= 1.0


def test_of_labels_that_do_not_exclude_each_other_the_largest_counts(make):
    folder = make(JIGSAW, problem_type="multi_label_classification")
    rows = classify(folder, SHORT)
    toxic = load_reward_model(f"hf:{folder}")
    assert toxic.labels == ("toxic",)
    assert score_samples(toxic, SHORT) == pytest.approx([row["toxic"] for row in rows], abs=2e-6)
    two = score_samples(load_reward_model(f"hf:{folder}#threat, insult"), SHORT)
    assert two == pytest.approx([max(row["threat"], row["insult"]) for row in rows], abs=2e-6)
    mixed = score_samples(load_reward_model(f"hf:{folder}#threat,-insult"), SHORT)
    assert mixed == pytest.approx([max(row["threat"], 1 - row["insult"]) for row in rows], abs=2e-6)


def test_models_with_one_output_need_to_be_told_what_is_good(make):
    folder = make(["LABEL_0"])
    with pytest.raises(
        PHFError, match=r"which label of .* is bad.* it has LABEL_0; .*#LABEL_0, or #-LABEL_0 if"
    ):
        load_reward_model(f"hf:{folder}")
    expected = [row["LABEL_0"] for row in classify(folder, SHORT)]
    bad = score_samples(load_reward_model(f"hf:{folder}#LABEL_0"), SHORT)
    assert bad == pytest.approx(expected, abs=2e-6)
    good = score_samples(load_reward_model(f"hf:{folder}#-LABEL_0"), SHORT)
    assert np.add(bad, good) == pytest.approx(1.0, abs=2e-6)


def test_regression_gives_the_output_itself(make):
    folder = make(["reward"], problem_type="regression")
    model = load_reward_model(f"hf:{folder}#-reward")
    expected = [-row["reward"] for row in classify(folder, SHORT)]
    assert score_samples(model, SHORT) == pytest.approx(expected, abs=2e-5)
    assert (model.unit, model.hit_threshold) == ("arbitrary units", 0.0)


def test_a_long_text_is_read_in_windows_and_the_worst_counts(binary, tokenizer):
    model = load_reward_model(f"hf:{binary}")
    text = " ".join(SHORT)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 4 * 62
    network = BertForSequenceClassification.from_pretrained(binary).eval()
    windows = [[2, *ids[start : start + 62], 3] for start in range(0, len(ids), 62)]
    with torch.inference_mode():
        each = [network(torch.tensor([window])).logits.softmax(-1)[0, 1].item() for window in windows]
    assert np.argmax(each) > 0
    assert model.score(text, [len(text)]) == pytest.approx([max(each)], abs=2e-6)


def test_company_moves_a_score_by_float_noise_alone(binary):
    model = load_reward_model(f"hf:{binary}")
    together = np.asarray(model.score_texts(PARAGRAPHS))
    assert np.array_equal(together, model.score_texts(PARAGRAPHS))  # the same call, the same bits
    assert np.array_equal(together, load_reward_model(f"hf:{binary}").score_texts(PARAGRAPHS))
    alone = np.asarray([model.score_texts([text])[0] for text in PARAGRAPHS])
    assert np.abs(together - alone).max() < 1e-6
    order = np.random.default_rng(0).permutation(len(PARAGRAPHS))
    shuffled = np.asarray(model.score_texts([PARAGRAPHS[index] for index in order]))
    assert np.abs(together[order] - shuffled).max() < 1e-6


def test_batches_hold_texts_of_like_length_and_few_tokens(binary):
    batches = list(load_reward_model(f"hf:{binary}").split_batches([5000, 3, 0, 3000, 2, 4]))
    assert batches == [[4, 1, 5], [3], [0]]


def test_nasty_texts(binary):
    model = load_reward_model(f"hf:{binary}")
    for text in ("\x00", "\ud800", "\n", "😀😀🏽", "a" * 20_000, "\u2028"):
        assert 0 <= model.score(text, [len(text)])[0] <= 1
    assert score_samples(model, [""])[0].reason == "empty text"
    assert score_documents(model, [("", []), ("ab", [0, 2])])[1][0].reason == "empty text"


def test_a_model_that_breaks_gives_no_score(binary):
    model = load_reward_model(f"hf:{binary}")
    with torch.no_grad():
        model._model.classifier.bias.fill_(math.nan)
    assert model.score("text", [4])[0].reason == "the model's output is not finite"


def test_decoders_without_a_padding_token(tmp_path, tokenizer):
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator(
        SHORT,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, max_position_embeddings=512, num_key_value_heads=2, num_labels=2, **TINY
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    model = load_reward_model(f"hf:{tmp_path}#LABEL_1")
    assert model.max_length == 510
    expected = [classify(tmp_path, [text])[0]["LABEL_1"] for text in SHORT[:5]]
    assert score_samples(model, SHORT[:5]) == pytest.approx(expected, abs=2e-6)
    assert np.ptp(expected) > 1e-3


# --- identity -----------------------------------------------------------------------------------------------------


def test_the_identity_follows_weights_tokenizer_and_labels_not_the_place(make, binary, tmp_path):
    identity = load_reward_model(f"hf:{binary}").identity
    assert identity.name == "classifier"
    assert identity.parameters == {"labels": ["toxic"], "activation": "softmax", "max_length": 64}
    copy = tmp_path / "classifier"
    shutil.copytree(binary, copy)
    (copy / "README.md").write_text("words")
    assert load_reward_model(f"hf:{copy}").identity == identity
    assert load_reward_model(f"hf:{copy}#fine").identity.id != identity.id
    assert load_reward_model(f"hf:{make(['fine', 'toxic'], seed=1)}").identity.id != identity.id
    tokenizer_file = copy / "tokenizer.json"
    tokenizer_file.write_text(tokenizer_file.read_text().replace('"lowercase": true', '"lowercase": false'))
    assert load_reward_model(f"hf:{copy}").identity.id != identity.id


def test_detoxify_is_the_hubs_model_under_its_own_name(make, monkeypatch):
    folder = make(JIGSAW, problem_type="multi_label_classification")
    asked = []
    monkeypatch.setattr(
        hugging_face,
        "find_snapshot",
        lambda source, download=True: asked.append((source, download)) or folder,
    )
    model = load_reward_model("toxicity-detoxify")
    catalogue.load_card("toxicity-detoxify", download=False)
    assert (model.identity.name, model.labels) == ("toxicity-detoxify", ("toxic",))
    assert asked == [(catalogue.DETOXIFY, True), (catalogue.DETOXIFY, False)]


def test_a_commit_that_is_on_this_machine_needs_no_network(make, tmp_path, monkeypatch):
    folder, commit = make(["fine", "toxic"]), "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--judge" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    asked = []

    def fetch(*arguments, **options):
        asked.append(options.get("local_files_only"))
        return huggingface_hub.snapshot_download(*arguments, cache_dir=tmp_path, **options)

    monkeypatch.setattr(hugging_face, "snapshot_download", fetch)
    assert find_snapshot(f"owner/judge@{commit}") == snapshot
    assert load_reward_model(f"hf:owner/judge@{commit}#toxic").identity.name == "judge"
    assert asked == [True, True]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no folder ''"),
        ("/nowhere/at/all", "no folder '/nowhere/at/all'; write hf:<folder> or hf:<owner>/<model>"),
        ("owner/model", "owner/model is no local folder and cannot be had from the Hugging Face Hub: .*'hf download owner/model'"),
        ("no such name", "cannot be had from the Hugging Face Hub: .*alphanumeric"),
        (f"owner/model@{'0' * 40}", "cannot be had from the Hugging Face Hub"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(source, message):
    with pytest.raises(PHFError, match=message) as error:
        load_reward_model(f"hf:{source}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "chosen", "message"),
    [
        (["LABEL_0", "LABEL_1"], "", "which label .* LABEL_0, LABEL_1; write hf:...#LABEL_1, or #-LABEL_0 if that one is good"),
        (["hate", "offensive", "fine"], "", "which label .* hf:...#offensive"),
        (["fine", "toxic"], "#toxci", "has no label 'toxci'; it has fine, toxic"),
        (["fine", "toxic"], "#fine,toxic", "to every text"),
        (["a", "b", "c"], "#a,-b", "exclude each other: name the bad ones alone"),
    ],
)  # fmt: skip
def test_labels_are_never_guessed(make, labels, chosen, message):
    with pytest.raises(PHFError, match=message):
        load_reward_model(f"hf:{make(labels)}{chosen}")


def _edit_config(folder, **values):
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_models_that_are_no_safe_classifiers_are_refused(make, tmp_path, tokenizer):
    pickled = make(["fine", "toxic"])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(PHFError, match="no weights in safetensors; phf reads no pickle"):
        load_reward_model(f"hf:{pickled}")

    BertModel(BertConfig(vocab_size=600, **TINY)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(PHFError, match=r"base is no sequence classifier .*BertModel"):
        load_reward_model(f"hf:{tmp_path / 'base'}")
    _edit_config(tmp_path / "base", architectures=["BertForSequenceClassification"])
    model = load_reward_model(f"hf:{tmp_path / 'base'}#LABEL_1")
    with pytest.raises(PHFError, match=r"lacks the weights .*classifier.*no trained classifier"):
        model.score("text", [4])

    foreign = make(["fine", "toxic"])
    _edit_config(foreign, model_type="own", auto_map={"AutoConfig": "code.Own"})
    (foreign / "code.py").write_text("raise SystemExit('ran foreign code')")
    with pytest.raises(PHFError, match="cannot be loaded by transformers"):
        load_reward_model(f"hf:{foreign}")
