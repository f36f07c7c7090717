"""How many items of each kind the judges of PII find, on items that Faker makes up: what `phf reward list` says of them.

    python benchmarks/pii_recall.py [MODEL ...]

Each item stands in a sentence of its own; it is found if an item covers four fifths of it. Intervals are Wilson's, 95 %.
"""

import sys
from collections.abc import Iterator

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


def main() -> None:
    """Print a table."""
    print("| judge | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for name in sys.argv[1:] or MODELS:
        model = load_reward_model(name)
        assert isinstance(model, ItemRewardModel)
        found = (measure_recall(model, kind) for kind in KINDS)
        cells = (f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]".replace("0.", ".") for e in found)
        print(f"| `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
