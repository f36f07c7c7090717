"""How many items of each kind the judges of PII find, on items that Faker makes up: what `phf reward list` says of them.

    python benchmarks/pii_recall.py [MODEL ...]
    python benchmarks/pii_recall.py --precision MAILS [--code FOLDER]    how many of what `pii` and `pii-phonenumbers` find are right

Each item stands in a sentence of its own; it is found if an item covers four fifths of it. Intervals are Wilson's, 95 %.

Precision: in mails an item is right if another make (Presidio, scrubadub, libphonenumber) finds something at its place; in Python
source, which holds no person's number, each telephone, card and social security number is false.
"""

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from phf.corpus.mail import UnreadableMail, extract_mail_text
from phf.intervals import wilson
from phf.records import Estimate
from phf.reward_models import load_reward_model
from phf.reward_models.pii import ItemRewardModel

NUM = 400
ABROAD = ("en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pt_BR", "en_IN", "ja_JP", "en_AU", "nl_NL", "pl_PL", "sv_SE", "zh_CN", "ru_RU")  # fmt: skip
KINDS = ("e-mail", "ssn", "ip", "card", "phone, US", "phone, abroad")
MODELS = ("pii", "pii-phonenumbers", "pii-presidio", "pii-scrubadub")


def make_items(kind: str, seed: int = 0, num: int = NUM) -> Iterator[str]:
    """Made-up items of a kind; "phone, abroad" is of 14 other countries, one after the other."""
    from faker import Faker  # tests ask first whether it is there

    fakers = [Faker(locale) for locale in (ABROAD if kind == "phone, abroad" else ("en_US",))]
    for faker in fakers:
        faker.seed_instance(seed)
    for index in range(num):
        faker = fakers[index % len(fakers)]
        make = {"e-mail": faker.email, "ssn": faker.ssn, "card": faker.credit_card_number}.get(kind)
        if kind == "ip":
            make = (faker.ipv4, faker.ipv6)[index % 2]
        yield str(make() if make is not None else faker.phone_number())


def measure_recall(model: ItemRewardModel, kind: str, seed: int = 0, num: int = NUM) -> Estimate:
    """The share of made-up items of a kind that a judge finds, whatever it calls them."""
    hits = 0
    for item in make_items(kind, seed, num):
        text = f"Please use {item}, thanks."
        start = text.index(item)
        covered = (min(b, start + len(item)) - max(a, start) for a, b, _ in model.find_items(text))
        hits += max(covered, default=0) >= 0.8 * len(item)
    return wilson(hits, num)


def find_spans(text: str, others: Sequence[ItemRewardModel]) -> list[tuple[int, int]]:
    """Where other makes than ours find an item; of telephone numbers, one that libphonenumber holds for possible."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    items = [(start, end) for model in others for start, end, _ in model.find_items(text)]
    for line in re.finditer(r".*\d.*", text):
        for match in PhoneNumberMatcher(line[0], "US", leniency=Leniency.POSSIBLE):
            items.append((line.start() + match.start, line.start() + match.end))
    return items


def load_items(name: str) -> ItemRewardModel:
    """A judge that says where its items are."""
    model = load_reward_model(name)
    assert isinstance(model, ItemRewardModel)
    return model


def measure_precision(folder: Path, code: Path, num_mails: int = 600, num_files: int = 600) -> None:
    """Print a table of what is right of what is found in mails, and of how much is found in a million characters of code."""
    mails = sorted(path for path in folder.rglob("*.txt"))
    texts = []
    for path in mails[:: max(1, len(mails) // num_mails)]:
        with suppress(UnreadableMail):
            texts.append(extract_mail_text(path.read_bytes()))
    sources = sorted(code.rglob("*.py"))
    sources = sources[:: max(1, len(sources) // num_files)]
    files = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    size = sum(map(len, files)) / 1e6
    others = [load_items(name) for name in MODELS[2:]]
    spans = [find_spans(text, others) for text in texts]
    print(f"{len(texts)} mails, {len(files)} files with {size:.3g} million characters")
    for name in MODELS[:2]:
        model = load_items(name)
        right, all_found = Counter[str](), Counter[str]()
        for text, places in zip(texts, spans, strict=True):
            for start, end, kind in model.find_items(text):
                all_found[kind] += 1
                right[kind] += any(a < end and start < b for a, b in places)
        in_code = Counter(kind for text in files for _, _, kind in model.find_items(text))
        for kind, num in all_found.items():
            e = wilson(right[kind], num)
            print(
                f"{name} {kind}: {right[kind]} of {num} {e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]; code {in_code[kind]}"
            )


def main() -> None:
    """Print a table."""
    if "--precision" in sys.argv:
        options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
        code = options.get("--code", sysconfig.get_paths()["stdlib"])
        measure_precision(Path(options["--precision"]), Path(code))
        return
    print("| judge | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for name in sys.argv[1:] or MODELS:
        model = load_items(name)
        found = (measure_recall(model, kind) for kind in KINDS)
        cells = (f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]".replace("0.", ".") for e in found)
        print(f"| `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
