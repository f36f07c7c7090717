"""Control tokens put into the vocabulary of a tokenizer.json and found there again, out of the reach of any text."""

import json
import re
from typing import Any

import tokenizers

from phf.control import BAD_TOKEN, GOOD_TOKEN, ControlTokens, level_tokens
from phf.errors import PHFError

Component = dict[str, Any]
"""A part of tokenizer.json: what its keys are depends on its type."""


def find_control(backend: tokenizers.Tokenizer, config: dict[str, object]) -> ControlTokens | None:
    """The control tokens, if the vocabulary has them as ours do: last, and not among the added tokens.

    Args:
        config: tokenizer_config.json, which says so where only some of them are left (`delete_control_tokens`).
    """
    end = backend.token_to_id(str(config.get("eos_token")))
    good, bad = backend.token_to_id(GOOD_TOKEN), backend.token_to_id(BAD_TOKEN)
    last = max(backend.get_vocab(with_added_tokens=True).values())
    if config.get("control_tokens") == [] and good is None:
        good, bad = last + 1, last + 2
    elif config.get("control_tokens") == [GOOD_TOKEN] and good == last:
        bad = last + 1
    if end is None or good is None or bad != good + 1:
        return None
    names = level_tokens(max(last - bad, 0))
    is_ours = [backend.token_to_id(name) for name in names] == list(range(bad + 1, last + 1))
    if not is_ours or not backend.get_added_tokens_decoder().keys().isdisjoint(range(good, last + 1)):
        return None
    return ControlTokens(end, good, bad, len(names))


def release_control(backend: tokenizers.Tokenizer, name: str) -> tokenizers.Tokenizer:
    """The tokenizer without `<|good|>` and `<|bad|>` where somebody has added them as its last two ids, so that
    `add_unreachable` can put them there again; without such tokens as it is.

    Raises:
        PHFError: it has one of them, and not so.
    """
    vocabulary, names = backend.get_vocab(with_added_tokens=True), (GOOD_TOKEN, BAD_TOKEN)
    found = {token: vocabulary.pop(token) for token in names if token in vocabulary}
    if not found:
        return backend
    free = max(vocabulary.values()) + 1
    are_added = set(found.values()) <= backend.get_added_tokens_decoder().keys()
    if found != {GOOD_TOKEN: free, BAD_TOKEN: free + 1} or not are_added:
        token, index = next(iter(found.items()))
        raise PHFError(
            f"tokenizer {name} has a {token} of its own (id {index}); choose one without, or one to which {GOOD_TOKEN} and "
            f"{BAD_TOKEN} were added last, in this order"
        )
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in names]
    model = content["model"]
    if model["type"] == "Unigram":
        del model["vocab"][free:]
    else:
        model["vocab"] = {token: index for token, index in model["vocab"].items() if index < free}
    kept = [
        step
        for step in steps(content, "post_processor", "processors")
        if not any(token in json.dumps(step) for token in names)  # a template that begins with one of them
    ]
    content["post_processor"] = {"type": "Sequence", "processors": kept} if kept else None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def add_unreachable(
    backend: tokenizers.Tokenizer, new: dict[str, int], unreachable: list[str], name: str
) -> tokenizers.Tokenizer:
    """A copy whose vocabulary holds new tokens at their ids, which no text becomes (nor any other `unreachable` one).

    Raises:
        PHFError: the vocabulary has one of the new tokens.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    for token in new:
        if token in vocabulary:
            raise PHFError(
                f"tokenizer {name} has a {token} of its own (id {vocabulary[token]}); choose another"
            )
    content = json.loads(backend.to_str())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    # A reload counts ids of added tokens on from the model's vocabulary: those in between must be in it.
    extend_vocabulary(content["model"], {**added, **new})
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    guarded = sorted({*special, *unreachable})
    if _reaches_whole_words(content["model"], guarded):
        content["pre_tokenizer"] = _guard(content["pre_tokenizer"], guarded)
    if (content["normalizer"] or {}).get("type") == "NFC" and any(
        step["type"] == "ByteLevel" for step in steps(content, "decoder", "decoders")
    ):
        # A document is immutable: its own bytes, composed or not, must come back.
        content["normalizer"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def extend_vocabulary(model: Component, tokens: dict[str, int]) -> None:
    """Add tokens at their ids to a model's vocabulary (a mapping, or Unigram's list of pairs)."""
    if model["type"] != "Unigram":
        model["vocab"].update(tokens)
        return
    names = {index: token for token, index in tokens.items()}
    for index in range(len(model["vocab"]), max(names) + 1):
        # The score is never used (see `_guard`), but the least one sets the price of an unknown character.
        model["vocab"].append([names.get(index, f"<|unused-{index}|>"), 0.0])


def _reaches_whole_words(model: Component, tokens: list[str]) -> bool:
    """Whether the model may turn a word of the text into one of these tokens without the matcher of added tokens."""
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return True
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return not {left + right for left, right in merges}.isdisjoint(tokens)


def _guard(pre_tokenizer: Component | None, tokens: list[str]) -> Component:
    """A pre-tokenizer that also cuts any word that spells one of these tokens, after its first and second character."""
    cuts = (
        f"(?<={re.escape(token[0])}){re.escape(token[1])}(?={re.escape(token[2:])})"
        for token in tokens
        if len(token) > 1
    )
    split = {"type": "Split", "pattern": {"Regex": "|".join(cuts)}, "behavior": "Isolated", "invert": False}
    before = steps({"pre_tokenizer": pre_tokenizer}, "pre_tokenizer", "pretokenizers")
    return {"type": "Sequence", "pretokenizers": [*before, split]}


def steps(content: Component, key: str, many: str) -> list[Component]:
    """The parts of a tokenizer's component: none, one, or those of a Sequence."""
    component = content[key]
    if component is None:
        return []
    return list(component[many]) if component["type"] == "Sequence" else [component]
