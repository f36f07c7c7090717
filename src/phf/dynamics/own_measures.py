"""How numbers of ends of pages, of a model's own view and of concatenated pages are shown."""

from phf.results import Measure

DIVERGENCE = Measure(
    "divergence",
    "what stood before",
    "nats",
    "Jensen-Shannon divergence of the next token's distribution behind two different documents and one beginning of a third: "
    "0 where what stood before is disregarded, at most .69. Without a mode: of models side by side, and their differences.",
    "Attention is plain and causal, as users run a model; where documents are isolated it is 0 for any model.",
    of="between, or model",
    at="tokens read",
)
TEXT_DIVERGENCE = Measure(
    "text_divergence",
    "what stood before, in texts",
    "nats",
    "The same of the distribution of the next tokens together.",
    "Texts begin where the third document was read for some tokens.",
    of="between, or model",
    at="tokens",
)
OWN_HAZARD = Measure(
    "own_hazard",
    "hazard, own view",
    "share of segments",
    "Of pages that the model labels while it writes them: the probability of another label at the end of a segment; the judge's of these pages.",
    "A label is what training data would have here, not what the text is.",
    None,
    of="step",
)
RELAXATION = Measure(
    "relaxation",
    "bad, behind a forced beginning",
    "share of segments",
    "P(the label bad, not good) at the ends of segments behind labels that were put there; pages are kept from ending.",
    "Labels are the model's own; no judge.",
    None,
    of="labels",
    at="segments behind",
)
COMING_BACK = Measure(
    "coming_back",
    "once bad, is it harder to come back?",
    "",
    "to fall - to come back: P(bad next | good so far) - P(good next | good, then one bad), above 0 where it is harder to come back than it "
    "was to fall. Asymmetry: how many more bad segments one bad label among good ones brings than one good label among bad ones takes away; "
    "0 for any chain of order 1, however often it is bad.",
    "Where bad text is rare, coming back is easy for any chain.",
    None,
    of="number",
)
BITS_BY_POSITION = Measure(
    "bits_by_position",
    "bits per byte",
    "",
    "Of documents one after the other, by the end of the stretch of tokens that they are in.",
    at="token",
)
SCORE_BY_POSITION = Measure(
    "score_by_position",
    "score",
    "",
    "Mean score of segments that the model writes, page after page in one context.",
    at="token",
)
OWN_MEASURES = [
    DIVERGENCE,
    TEXT_DIVERGENCE,
    OWN_HAZARD,
    RELAXATION,
    COMING_BACK,
    BITS_BY_POSITION,
    SCORE_BY_POSITION,
]
