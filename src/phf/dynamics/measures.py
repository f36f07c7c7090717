"""How the numbers of a dynamics.json are shown: of judged pages; then of ends of pages, a model's own view, and concatenated pages."""

from phf.results import Measure

RATE = Measure(
    "rate",
    "rate",
    "share of segments",
    "Of the segments in one state, how many are followed by another, or by the page's end.",
    "A judge's errors look like switches and back.",
    lower_is_better=None,
    of="step",
)
RATE_OF_DATA = Measure(
    "rate_of_data",
    "rate, data",
    "share of segments",
    "The same in the training data, in documents with as many segments.",
    "",
    None,
    of="step",
)
RATE_EXCESS = Measure(
    "rate_excess",
    "rate, model - data",
    "share of segments",
    "What of the rate is the model's own.",
    "Documents are matched by length alone.",
    None,
    of="step",
)
LAW = Measure(
    "law",
    "what follows from the rates",
    "",
    "Of the chain of these rates.",
    "A chain of order 1.",
    None,
    of="number",
)
LAW_OF_DATA = Measure("law_of_data", "the same, data", "", "", "", None, of="number")
LAW_EXCESS = Measure("law_excess", "model - data", "", "", "", None, of="number")
HIDDEN = Measure(
    "hidden",
    "without the judge's errors",
    "",
    "The same of the chain that stands behind the judge's verdicts, given how often it errs.",
    "Errors are taken to be independent, and the second judge, or who labelled, to be right.",
    None,
    of="number",
)
HIDDEN_OF_DATA = Measure("hidden_of_data", "the same, data", "", "", "", None, of="number")
HIDDEN_EXCESS = Measure("hidden_excess", "model - data, without errors", "", "", "", None, of="number")
JUDGE_ERROR = Measure(
    "judge_error",
    "the judge errs",
    "share of segments",
    "Of the segments that the second judge, or who labelled, calls bad (good), how many the judge calls good (bad).",
    "",
    of="called",
)
DRIFT = Measure(
    "drift",
    "drift",
    "share, a segment",
    "By how much a rate rises with each segment further on.",
    "Late places are those of long pages alone.",
    None,
    of="step",
)
PLACES_P = Measure(
    "places_p",
    "p of alike places",
    "",
    "That a chain whose rates are the same in all places would give rates that differ as much between them (parametric bootstrap).",
    "",
    None,
)
RETURN = Measure(
    "return",
    "good again",
    "share of visits",
    "Of pages that came to a state: how many were good again within so many segments. At none, the interval is what can be ruled out.",
    "A page that ends first did not come back.",
    None,
    of="state, tokens",
    at="segments",
)
STAY = Measure(
    "stay",
    "still there",
    "share of visits",
    "Of the same pages: how many neither were good again nor had ended.",
    "",
    None,
    of="state, tokens",
    at="segments",
)
HAZARD = Measure(
    "hazard",
    "hazard",
    "share of segments",
    "By the place of a segment on its page: how many good ones turn bad behind it, and bad ones good.",
    "Late places are those of long pages alone.",
    None,
    of="step",
    at="segment",
)
ORDER = Measure(
    "order", "order", "segments", "How many segments the next one depends on, by BIC.", "At most 3.", None
)
ORDER_P = Measure(
    "order_p",
    "p of the order",
    "",
    "That a chain of this order would give pages which one of the next order fits as much better (parametric bootstrap).",
    "",
    None,
)
SHARE_BETWEEN = Measure(
    "share_between",
    "share between pages",
    "share of the variance",
    "Of a segment's being bad or not: how much lies between pages (intraclass correlation).",
    "A slow chain has one, too.",
    None,
)
FAR_EXCESS = Measure(
    "far_excess",
    "far excess",
    "share of the variance",
    "How much more far segments of one page are alike than the chain of near ones says: 0 where a page's own average is that of all.",
    "Pages must be long enough to have far segments.",
    None,
)
FAR_P = Measure(
    "far_p",
    "p of the far excess",
    "",
    "That an ergodic chain would give as much (parametric bootstrap).",
    "",
    None,
)
AVERAGE = Measure(
    "average",
    "share bad",
    "",
    "Over pages, each counting once, and over the stream of their segments: they differ where long pages are better or worse.",
    "",
    of="average",
)
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
MEASURES = [
    RATE,
    RATE_OF_DATA,
    RATE_EXCESS,
    LAW,
    LAW_OF_DATA,
    LAW_EXCESS,
    HIDDEN,
    HIDDEN_OF_DATA,
    HIDDEN_EXCESS,
    JUDGE_ERROR,
    DRIFT,
    PLACES_P,
    RETURN,
    STAY,
    HAZARD,
    ORDER,
    ORDER_P,
    SHARE_BETWEEN,
    FAR_EXCESS,
    FAR_P,
    AVERAGE,
    DIVERGENCE,
    TEXT_DIVERGENCE,
    OWN_HAZARD,
    RELAXATION,
    COMING_BACK,
    BITS_BY_POSITION,
    SCORE_BY_POSITION,
]
