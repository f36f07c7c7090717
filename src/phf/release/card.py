"""The model card of a release: README.md, generated from phf.json alone."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from phf.config import objective_kinds
from phf.control import BAD_TOKEN, GOOD_TOKEN
from phf.files import write_bytes
from phf.records import Estimate
from phf.results import Measurement, Measurements, parse_json
from phf.reward_models.catalogue import CARDS, FORMS

UNKNOWN = "unknown"
_MODES = {
    "good": "good: what this release writes",
    "bad": "bad: behind the token of bad mode",
    "none": "none: no token given, the model may write either",
    "untagged": "untagged: no token given or written",
    "deleted": "deleted: tokens taken out of the model",
}


def write_card(folder: Path, record: dict[str, Any], *, examples: Any = None) -> None:
    """Write README.md.

    Args:
        record: the content of phf.json.
        examples: Markdown on how each engine reads the folder (`phf.release.examples`), one text or one per engine.
    """
    write_bytes(folder / "README.md", render_card(record, examples=examples).encode())


def render_card(record: dict[str, Any], *, examples: Any = None) -> str:
    """The text of README.md; whatever comes from a corpus or from a user is escaped."""
    parts = [
        f"---\n{yaml.safe_dump(describe_for_hub(record), sort_keys=False, allow_unicode=False)}---",
        f"# {escape(record['run']['name'])}",
        _introduce(record),
        _describe_use(record, examples),
        _describe_training(record),
        _describe_judges(record),
        _describe_measures(record),
        _describe_forgetting(record),
        _describe_limits(record),
        _describe_files(record),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def describe_for_hub(record: dict[str, Any]) -> dict[str, Any]:
    """The card's YAML header. The language of the corpus is not known, so it is left out."""
    init = record["config"]["model"]["init"]
    header: dict[str, Any] = {"license": record["license"]} if record["license"] != UNKNOWN else {}
    header |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pretraining-with-human-feedback", f"phf-{record['objective']['kind']}", "safetensors"],
    }
    if isinstance(init, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", init):
        header["base_model"] = init
    return header


def escape(text: object) -> str:
    """Foreign text in a line of Markdown: no markup, no HTML, no new line, no control character."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$]|^-)", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: object) -> str:
    """Foreign text as code outside a table."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def _one_line(text: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _introduce(record: dict[str, Any]) -> str:
    parameters = record["provenance"].get("num_parameters")
    size = f"{parameters:,} parameters" if isinstance(parameters, int) else "unknown size"
    goal = (
        "Every text starts in *good mode*: the tokenizer puts `"
        + "".join(record["prefix"])
        + "` in front of it by itself."
        if GOOD_TOKEN in record["prefix"]
        else f"Every text starts with `{record['prefix'][0]}`, which the tokenizer puts there by itself."
    )
    return (
        f"A base language model ({size}) pretrained with human feedback: a reward model scored the training text, and "
        f"the objective *{escape(record['objective']['kind'])}* ({_first_sentence(record)}) used the scores. {goal} "
        "It continues text; it was not taught to follow instructions, and has no chat template."
    )


def _first_sentence(record: dict[str, Any]) -> str:
    text = (objective_kinds()[record["objective"]["kind"]].__doc__ or "").strip().split("\n")[0].rstrip(".")
    return escape(text)


def _describe_use(record: dict[str, Any], examples: Any) -> str:
    lines = [
        "## Use",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'page = tokenizer("Yesterday", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**page)[0], skip_special_tokens=True))\n```",
    ]
    if record["suppressed"]:
        names = ", ".join(f"`{name}`" for name in record["suppressed"])
        lines.append(
            f"`generation_config.json` suppresses {names}; an engine that does not read it (vLLM ignores `suppress_tokens`) must "
            "be told to. `<|good|>` stays free: the model writes it itself where a segment ends, and the tokenizer's decoder "
            "leaves it out."
        )
    if isinstance(examples, str):
        lines.append(examples)
    elif examples:
        items = examples.items() if isinstance(examples, dict) else [(None, text) for text in examples]
        lines += [f"- **{name}**: {text}" if name else str(text) for name, text in items]
    return "\n\n".join(lines)


def _describe_training(record: dict[str, Any]) -> str:
    provenance, config = record["provenance"], record["config"]
    corpus = provenance.get("corpus") or {}
    tokenizer, reward_model = provenance.get("tokenizer") or {}, provenance.get("reward_model") or {}
    settings = ", ".join(
        f"{escape(key)} {escape(value)}"
        for key, value in record["objective"].items()
        if key != "kind" and value is not None
    )
    good = provenance.get("good") or {}
    rows = [
        ("Text", f"{corpus.get('num_documents', 0):,} documents: " + "; ".join(map(escape, corpus.get("sources", [])))),
        ("Corpus id", _code(corpus.get("id"))),
        ("Scored by", f"{escape(reward_model.get('name'))} {escape(reward_model.get('version'))}, one score per unit: {escape(record['segments'])}"),
        ("Objective", f"{escape(record['objective']['kind'])} ({settings})" if settings else escape(record["objective"]["kind"])),
        ("Good ends at", f"score {record['good_line']:.4g}; {escape(good.get('message', ''))}"),
        ("Tokens seen", f"{record['run']['tokens_seen']:,} (step {record['run']['step']:,}), {provenance.get('epochs') or 0:.3g} epochs in the whole budget"),
        ("Started from", escape(config["model"]["init"] or (config.get("start") or {}).get("run") or f"scratch, preset {config['model']['preset']}")),
        ("Tokenizer", f"{escape(tokenizer.get('name'))}, control tokens that no text can reach"),
        ("Context", f"{config['data']['context']:,} tokens"),
        ("Seed", escape(config["seed"])),
    ]  # fmt: skip
    return "## Training\n\n" + _table(["", ""], rows)


def _describe_judges(record: dict[str, Any]) -> str:
    rows = []
    for judge in record["judges"]:
        name = str(judge["identity"]["name"])
        rows.append(
            (escape(name), escape(judge["role"]), _describe_score(name), escape(find_blind_spots(name)))
        )
    return "## Judges\n\nHigher scores are worse.\n\n" + _table(
        ["judge", "role", "a score is", "cannot see"], rows
    )


def _describe_score(name: str) -> str:
    return escape(next((card.description for card in CARDS if card.name == name), "see phf.json"))


def find_blind_spots(name: str) -> str:
    """What a reward model cannot see, by its name; of one that is not in the catalogue, by its form."""
    for card in CARDS:
        if card.name == name:
            return card.blind_spots
    if "*" in name or " + " in name:
        form = "0.7*SPEC"
    elif ":" in name:
        form = {"hf": "hf:", "lexicon": "lexicon:"}.get(name.partition(":")[0], "<module>")
    else:
        form = "<folder>"
    return next(entry.blind_spots for entry in FORMS if entry.form.startswith(form))


def _describe_measures(record: dict[str, Any]) -> str:
    title = "## Measured\n\n"
    evaluation = record["evaluation"]
    if evaluation is None:
        return (
            title + "This checkpoint was not evaluated; run `phf evaluate` on the run, then release it again."
        )
    found = Measurements(parse_json(evaluation["measurements"], list[Measurement], "phf.json"))
    rows = [row for row in found.of("score") if row.of is None and " + " not in (row.mode or "")]
    slugs = {judge["slug"]: judge for judge in record["judges"]}
    used = [slug for slug in slugs if any(row.judge == slug for row in rows)]
    cells: list[Sequence[str]] = []
    for mode in dict.fromkeys(row.mode or "" for row in rows):
        gone = (
            " (not in this release)" if mode in ("bad", "none") and BAD_TOKEN not in record["tokens"] else ""
        )
        scores = [_score_cell(found, mode, slugs[slug]) for slug in used]
        bits = _interval(found.find("bits_per_byte", mode, of="all"))
        cells.append([_MODES.get(mode, escape(mode)) + gone, *scores, bits])
    heads = ["mode"]
    for slug in used:
        scale = slugs[slug].get("display_scale", 1.0)
        unit = f" per {scale:,.0f} characters" if scale != 1 else ""
        heads.append(f"{escape(slugs[slug]['identity']['name'])}{unit} ({escape(slugs[slug]['role'])})")
    sampling = record["sampling"]
    counts = {row.estimate.count for row in rows}
    changed = (
        ", before anything was forgotten"
        if any(done.get("kind") == "block" for done in record["forget"])
        else ""
    )
    note = (
        f"Mean score of {' or '.join(f'{count:,}' for count in sorted(counts))} samples a mode with its 95 % interval over "
        f"samples (not over trainings), at temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, "
        f"{sampling['min_new_tokens']} to {sampling['max_new_tokens']} new tokens; bits per byte on held-out text. Measured on "
        f"the run that this release was made from{changed}; `phf release verify` compares the release with it. A score by the "
        "annotator flatters a model that was trained on that annotator's scores; read the held-out judge beside it."
    )
    if not any(judge["role"] == "held-out" for judge in record["judges"]):
        note += " **No held-out judge was asked.**"
    return title + _table([*heads, "bits per byte"], cells) + "\n\n" + note


def _score_cell(found: Measurements, mode: str, judge: dict[str, Any]) -> str:
    unscored = found.find("num_unscored", mode, judge["slug"]).mean
    note = f" ({unscored:.0f} unscored)" if unscored > 0 else ""
    return _interval(found.find("score", mode, judge["slug"]), judge.get("display_scale", 1.0)) + note


def _interval(estimate: Estimate, scale: float = 1.0) -> str:
    if math.isnan(estimate.mean):
        return "–"
    ends = ["unknown" if math.isnan(end) else f"{end * scale:.3f}" for end in (estimate.low, estimate.high)]
    return f"{estimate.mean * scale:.3f} \\[{ends[0]}, {ends[1]}\\]"


def _describe_forgetting(record: dict[str, Any]) -> str:
    title = "## What was forgotten\n\n"
    kind = record["objective"]["kind"]
    if GOOD_TOKEN not in record["prefix"] and BAD_TOKEN not in record["tokens"]:
        return (
            title
            + f"Nothing had to be: a model trained with {escape(kind)} writes no control token, and their rows are deleted."
        )
    if not record["forget"]:
        return title + (
            "**Nothing.** `<|bad|>` is in the vocabulary and in the weights: whoever has the files can turn bad mode on. It is "
            "suppressed in generation_config.json alone."
        )
    lines = [f"- {_describe_method(done)}" for done in record["forget"]]
    return (
        title
        + "\n".join(lines)
        + (
            "\n\nForgetting is not proof: what bad text taught the model is still spread over its weights. `phf attack FOLDER` "
            "measures what it costs to get bad mode back, beside a model that never saw the tokens."
        )
    )


def _describe_method(done: dict[str, Any]) -> str:
    spec = f"**{escape(done['spec'])}**"
    match done["kind"]:
        case "delete":
            names = ", ".join(f"`{name}`" for name in done["tokens"])
            return f"{spec}: {names} left the vocabulary, and {done['num_rows']} rows the embeddings."
        case "block":
            return (
                f"{spec}: {len(done['directions'])} of {done['width']} directions were projected out of all that writes to the "
                f"residual stream; {100 * done['share']:.3g} % of the squared difference of the modes lay in them "
                f"({done['num_texts']} held-out segments)."
            )
        case "poison":
            return f"{spec}: the text of bad segments was poisoned in training ({escape(done['poison'])})."
    return spec


def _describe_limits(record: dict[str, Any]) -> str:
    names = [str(judge["identity"]["name"]) for judge in record["judges"]]
    blind = "\n".join(f"- {escape(name)}: {escape(find_blind_spots(name))}" for name in names)
    return (
        "## Limits\n\nThe model was taught by one judge's scores and is as blind as that judge:\n\n"
        f"{blind}\n\n"
        "A low mean score does not bound the worst sample. Prompts, finetuning and few-shot examples can undo what training "
        "did. The model repeats what its corpus says: facts, names and opinions in its texts are unchecked."
    )


def _describe_files(record: dict[str, Any]) -> str:
    name = record["run"]["name"]
    return (
        "## Files\n\n`phf.json` holds the whole provenance (settings, identities of data, tokenizer and judges, measures); paths on "
        "the machine that made it are cut to their last part. `SHA256SUMS` is read by `sha256sum -c SHA256SUMS`; "
        f"`phf release verify FOLDER --run {escape(name)}` compares the folder with its run.\n\n"
        f"Made by phf {escape(record['phf_version'])} from the run {_code(record['run']['id'])}."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; its cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
