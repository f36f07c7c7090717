"""What may be published of the paths of this machine: their last part. Folders tell who made something, and where."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pydantic import JsonValue

_PATH = re.compile(
    r"""(?<![\w.~/\\-])                                  # not inside a word, such as a Hub id
        (?! (?<=<) /[\w-]+> )                               # nor a closing tag, such as </s>
        (?: [a-z][a-z0-9+.-]*:// | ~?/ | \.{1,2}/ | [A-Za-z]:[\\/] | \\\\ )
        [^\s"'`<>|()\[\]{},;*]+""",
    re.VERBOSE,
)
_STARTS_LIKE_A_PATH = re.compile(
    r"^(?:[a-z0-9.+-]+:)?(?:[a-z][a-z0-9+.-]*://|~?/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)"
)
_HUB_ID = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:[:@#].*)?")


def hide_paths(value: JsonValue, specs: Collection[str] = (), names: Collection[str] = ()) -> JsonValue:
    """A JSON value with each path and URL cut to its last part.

    `/home/ann/corpora/mails` becomes `mails`, `lexicon:~/words.txt` becomes `lexicon:words.txt`; Hub ids stay.

    Args:
        specs: paths, sources, judges and models as somebody named them (`find_specs`); a relative path looks like any other
            text, so it is cut where it is one of these.
        names: see `hide_spec`.
    """
    return _hide(hide_specs(value, specs, names), _cut_paths)


def hide_specs(value: JsonValue, specs: Collection[str], names: Collection[str] = ()) -> JsonValue:
    """As `hide_paths`, but nothing is cut that is not one of `specs`, so that foreign text stays what it is."""
    hidden = {spec: hide_spec(spec, names) for spec in sorted(specs, key=len, reverse=True)}
    patterns = [
        (spec, re.compile(rf"(?<![\w./\\~-]){re.escape(spec)}(?![\w-])"), shown)
        for spec, shown in hidden.items()
        if spec != shown
    ]

    def cut(text: str) -> str:
        for spec, pattern, shown in patterns:
            if spec in text:
                text = shown if text == spec else pattern.sub(shown.replace("\\", r"\\"), text)
        return text

    return _hide(value, cut) if patterns else value


def hide_settings(settings: dict[str, JsonValue], names: Collection[str] = ()) -> dict[str, JsonValue]:
    """Settings with each path that one of them names cut to its last part; `names`: see `hide_spec`."""
    hidden = hide_paths(settings, list(find_specs(settings)), names)
    assert isinstance(hidden, dict)
    return hidden


def find_specs(value: JsonValue) -> Iterator[str]:
    """The strings of settings that may hold a path: all with a slash."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from find_specs(item)
    elif isinstance(value, str) and re.search(r"[/\\]", value):
        yield value


def hide_spec(spec: str, names: Collection[str] = ()) -> str:
    """A path, source, judge or model as it may be published: `private/texts/a.jsonl [balanced]` is `a.jsonl [balanced]`.

    Args:
        names: of identities, among which a model from the Hub is `owner--name`. A Hub id stays where one of them or the
            cache of the Hub proves it; else it may as well be a folder.
    """
    body, rule = split_rule(spec)
    if re.match(r"-?[a-z-]+:(\w+=|.*,\w+=)", body):  # KIND:KEY=VALUE,... or KIND:PLACE,KEY=VALUE,...
        parts = re.split(r"(,(?=\w+=)|=)", body)
    elif re.match(r"-?[\d.eE+-]+\s*\*", body):
        parts = re.split(r"(\s\+\s|\*)", body)
    else:
        parts = [body]
    return "".join(_hide_term(part, names) for part in parts) + rule


def split_rule(source: str) -> tuple[str, str]:
    """A source, and the rule by which its documents were chosen: `("a.jsonl", " [balanced]")`."""
    found = re.fullmatch(r"(.*?)( \[[^/\\]*\])?", source, re.DOTALL)
    assert found is not None
    return found[1], found[2] or ""


def _hide_term(term: str, names: Collection[str]) -> str:
    if (found := _HUB_ID.fullmatch(term.lstrip("-"))) and _is_on_hub(found[1], names):
        return term
    if not re.search(r"[/\\]", term):
        return term
    kind = re.match(r"-?(?:[a-z][a-z0-9.-]+:(?!//))?", term)
    return (kind[0] if kind else "") + last_part(term)


def _is_on_hub(name: str, names: Collection[str]) -> bool:
    from huggingface_hub import constants

    folder = name.replace("/", "--")
    cached = (Path(constants.HF_HUB_CACHE) / f"{kind}s--{folder}" for kind in ("model", "dataset"))
    return folder in names or (not Path(name).exists() and any(place.is_dir() for place in cached))


def _hide(value: JsonValue, cut: Callable[[str], str]) -> JsonValue:
    if isinstance(value, dict):
        return {cut(key): _hide(item, cut) for key, item in value.items()}
    if isinstance(value, list):
        return [_hide(item, cut) for item in value]
    return cut(value) if isinstance(value, str) else value


def _cut_paths(value: str) -> str:
    if (
        _STARTS_LIKE_A_PATH.match(value) and "\n" not in value and ": " not in value
    ):  # with spaces in it or not
        head = value[: value.index(":") + 1] if re.match(r"^[a-z0-9.+-]{2,}:(?!//)", value) else ""
        return head + last_part(value)
    head, colon, tail = value.rpartition(":")
    if "/" in tail and (head in ("lexicon", "jsonl") or Path(tail).exists()):  # relative to where we are
        return head + colon + last_part(tail)
    return _PATH.sub(lambda match: last_part(match[0]), value)


def last_part(path: str) -> str:
    """The name of what lies at a path, of whatever system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "…"
