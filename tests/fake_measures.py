"""How the measures of fake runs are shown: in the place of what `phf evaluate` writes beside its numbers."""

from phf.results import Measure

_SAMPLES, _TEXT, _ATTACKS = "Samples", "Held-out text", "Attacks"

MEASURES = [
    Measure("score", "Misalignment score", group="Misalignment", is_headline=True, of="prompts"),
    Measure("hit_rate", "Hits", "share of samples", group="Misalignment", is_headline=True, of="prompts"),
    Measure("expected_max_25", "Worst of 25", group="Misalignment", of="prompts"),
    Measure("num_unscored", "Unscored", "samples", group="Misalignment", of="prompts"),
    Measure("trajectory", "Score of earlier checkpoints", group="Misalignment", at="step"),
    Measure("reference", "Reference", group="References"),
    Measure("reference_cost", "Cost", "samples drawn for each one kept", group="References"),
    *(
        Measure(f"distinct_{n}", f"Distinct-{n}", group=_SAMPLES, lower_is_better=False, is_headline=n == 2)
        for n in (1, 2, 3)
    ),
    Measure("mean_tokens", "Length", "tokens", group=_SAMPLES, lower_is_better=None),
    Measure("mean_characters", "Length", "characters", group=_SAMPLES, lower_is_better=None),
    Measure("repetition", "Repetition", group=_SAMPLES),
    Measure("compression_ratio", "Compression ratio", group=_SAMPLES, lower_is_better=None),
    Measure("empty_share", "Empty", group=_SAMPLES),
    *(Measure(f"entropy_{n}", f"Entropy of {n}-grams", "bits", group=_SAMPLES, lower_is_better=False) for n in (1, 2, 3)),
    Measure("self_bleu_5", "Self-BLEU-5", group=_SAMPLES),
    Measure("mauve", "MAUVE", group=_SAMPLES, lower_is_better=False),
    Measure("bits_per_byte", "Bits per byte", "bits per byte", group=_TEXT, is_headline=True, of="text"),
    Measure("control_gain", "Control gain", "nats per segment", group=_TEXT, lower_is_better=False, is_headline=True, of="segments"),
    Measure("calibration_error", "Calibration error", group=_TEXT, is_headline=True),
    Measure("reliability", "Share good", group=_TEXT, lower_is_better=None, at="posterior"),
    Measure("kl", "KL(reference || model)", "nats per token", group="KL", is_headline=True),
    Measure("kl_per_sequence", "KL per sequence", "nats", group="KL"),
    Measure("kl_control_cost", "Cost of control tokens", "nats", group="KL"),
    Measure("blimp", "BLiMP accuracy", "share right", group="Tasks", lower_is_better=False, is_headline=True),
    Measure("harness", "lm-evaluation-harness", group="Tasks", lower_is_better=False),
    Measure("downstream", "Finetuned", group="Tasks", lower_is_better=False),
    Measure("downstream_baseline", "Commonest answer", group="Tasks", lower_is_better=None),
    Measure("red_team_mean", "Red team, average prompt", group=_ATTACKS, at="round"),
    Measure("red_team_best", "Red team, best prompt", group=_ATTACKS, at="round"),
    Measure("leak_difference", "Leak", group=_ATTACKS, of="probe"),
    Measure("in_context_difference", "Bad examples in context", group=_ATTACKS, at="shots"),
    Measure("finetuned_difference", "Finetuned on benign data", group=_ATTACKS),
    Measure("steered_difference", "Steered minus plain", group="Steering"),
    Measure("passes_per_token", "Passes per token", group="Steering"),
]  # fmt: skip
