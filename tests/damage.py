"""Damages every kind of file that a command reads back, and counts what the command makes of it.

By hand, everything: `python tests/damage.py` (`--num 200` draws so many cases, `--commands show,report`, `--kinds run.json`).
Each case is refused in one line, said (the output tells of it), or harmless (the result is the same); SILENT, TRACEBACK and
LEFTOVER are faults. `tests/kills.py` does the same with commands that are killed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from golden_runs import train_objective, write_mails
from typer.testing import CliRunner

from phf import cli
from phf.annotate.annotate import annotate
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.tokens.tokens import tokenize

STEPS = 20
EVALUATE = (
    "evaluate {run} --num-samples 8 --max-new-tokens 12 --min-new-tokens 2 --set capability_documents=8"
)
ATTACK = (
    "attack release runs/a -o attack --attack few-shot --attack finetune --num-texts 4 --num-samples 4 --set steps=[1,2] "
    "--set num_reference=8 --set num_held_out=8 --set sampling.max_new_tokens=4 --set sampling.min_new_tokens=1"
)
DOSES = (
    "release doses runs/a -o doses.json --directions 1 --num-samples 4 --min-new-tokens 1 --max-new-tokens 4"
)
REWARD = "reward train labels.jsonl -o rewards"
SAID = re.compile(
    r"damaged|missing|has no|have no|are gone|another run|not evaluated|next: phf evaluate|ESTIMATE|No samples|cannot be read"
)
FAULTS = ("SILENT", "TRACEBACK", "LEFTOVER")


@dataclass(frozen=True)
class Command:
    """A command, and the files (patterns) whose bytes are its result; without, what it prints is."""

    line: str
    results: tuple[str, ...] = ()


COMMANDS = {
    "show": Command("show runs/a"),
    "compare": Command("compare runs/a runs/b"),
    "report": Command("report runs/a runs/b -o report.html", ("report.html",)),
    "sample": Command("sample runs/a --mode good --num-samples 2 --max-new-tokens 8"),
    "resume": Command(f"train --resume runs/a@{STEPS // 2}", (f"runs/a/checkpoints/step-0000{STEPS}/*.safetensors",)),
    "evaluate": Command(EVALUATE.format(run="runs/a"), ("runs/a/evaluation.json", "runs/a/samples.parquet")),
    "release": Command("release runs/a -o new", ("new/**/*",)),
    "verify": Command("release verify release --num-samples 16"),
    "stats": Command("corpus stats corpus"),
    "annotate": Command("annotate corpus --reward-model pii --segments lines --workers 1 --verify", ("corpus/annotations/**/*",)),
    "tokenize": Command("tokenize corpus --tokenizer train:320 --segments lines --workers 1", ("corpus/tokens/**/*",)),
    "score": Command("annotate corpus --reward-model rewards --segments lines --workers 1", ("corpus/annotations/rewards*/*",)),
    "train rewards": Command(REWARD, ("rewards/*",)),
    "attack": Command(ATTACK, ("attack/attack.json", "attack/attack.html")),
    "doses": Command(DOSES, ("doses.json", "doses.svg")),
    "balance": Command("corpus balance corpus -r pii -s lines --threshold 0 -o new", ("new/**/*",)),
    "export": Command("corpus export corpus -o new --format dolma -r pii -s lines", ("new/**/*",)),
}  # fmt: skip
_RUN = ("show", "compare", "report", "sample", "resume", "evaluate", "release", "attack", "doses")
_CORPUS = ("stats", "resume", "evaluate", "balance", "export")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run.json": ("runs/a/run.json", _RUN),
    "metrics.jsonl": ("runs/a/metrics.jsonl", ("show", "compare", "report", "resume")),
    "evaluation.json": ("runs/a/evaluation.json", ("show", "compare", "report", "evaluate", "release")),
    "samples.parquet": ("runs/a/samples.parquet", ("show", "report", "evaluate")),
    "items.parquet": ("runs/a/items.parquet", ("compare", "report", "evaluate")),
    "samples part": ("runs/a/evaluation/*/samples-good.json", ("evaluate",)),
    "scores part": ("runs/a/evaluation/*/scores-good-*.json", ("evaluate",)),
    "checkpoint.json": (f"runs/a/checkpoints/step-0000{STEPS // 2}/checkpoint.json", ("resume",)),
    "last checkpoint.json": (f"runs/a/checkpoints/step-0000{STEPS}/checkpoint.json", ("sample", "evaluate", "release")),
    "weights": (f"runs/a/checkpoints/step-0000{STEPS}/model.safetensors", ("sample", "evaluate", "release")),
    "optimizer": (f"runs/a/checkpoints/step-0000{STEPS // 2}/optimizer.safetensors", ("resume",)),
    "config.json": (f"runs/a/checkpoints/step-0000{STEPS}/config.json", ("sample", "release")),
    "tokenizer.json": (f"runs/a/checkpoints/step-0000{STEPS}/tokenizer.json", ("sample", "release")),
    "corpus manifest": ("corpus/manifest.json", ("annotate", "tokenize", *_CORPUS)),
    "documents": ("corpus/documents/00000.parquet", ("annotate", "tokenize", *_CORPUS)),
    "annotation manifest": ("corpus/annotations/*/manifest.json", ("annotate", *_CORPUS)),
    "annotation": ("corpus/annotations/*/00000.parquet", ("annotate", *_CORPUS)),
    "tokens manifest": ("corpus/tokens/*/manifest.json", ("tokenize", "stats", "resume", "evaluate")),
    "token ids": ("corpus/tokens/*/00000.ids", ("tokenize", "resume", "evaluate")),
    "segment ends": ("corpus/tokens/*/00000.segment_ends", ("tokenize", "resume", "evaluate")),
    "document ends": ("corpus/tokens/*/00000.document_ends", ("tokenize", "resume", "evaluate")),
    "segment bytes": ("corpus/tokens/*/00000.segment_bytes", ("tokenize", "evaluate")),
    "split": ("corpus/tokens/*/00000.is_train", ("tokenize", "resume", "evaluate")),
    "corpus's tokenizer.json": ("corpus/tokens/*/tokenizer/tokenizer.json", ("tokenize", "resume")),
    "phf.json": ("release/phf.json", ("verify", "attack")),
    "SHA256SUMS": ("release/SHA256SUMS", ("verify",)),
    "released weights": ("release/model.safetensors", ("verify", "attack")),
    "released tokenizer.json": ("release/tokenizer.json", ("verify", "attack")),
    "released config.json": ("release/config.json", ("verify", "attack")),
    "generation_config.json": ("release/generation_config.json", ("verify",)),
    "card": ("release/README.md", ("verify",)),
    "reward_model.json": ("rewards/reward_model.json", ("score", "train rewards")),
    "reward weights": ("rewards/weights.safetensors", ("score", "train rewards")),
    "reward evaluation": ("rewards/evaluation.json", ("train rewards",)),
    "attack.json": ("attack/attack.json", ("attack",)),
    "attack part": ("attack/parts/*/few-shot-4-seed0.json", ("attack",)),
    "doses.json": ("doses.json", ("doses",)),
    "dose part": ("runs/a/doses/*/block-1/capability.json", ("doses",)),
}  # fmt: skip


def make_place(folder: Path, *, is_whole: bool = True, has_other: bool = True) -> None:
    """A corpus and two runs that were evaluated.

    Args:
        is_whole: also a release, attacks on it, doses, and a reward model.
        has_other: in `other` all of that once more, with other data: what is put in the place of a file.
    """
    for name, seed, num in (("", 0, 120), ("other", 7, 100))[: 1 + has_other]:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(place):
            write_mails(Path("mails.jsonl"), num)
            corpus = build_corpus(["mails.jsonl"], Path("corpus"), validation_fraction=0.2)
            annotate(corpus, "pii", "lines", workers=1)
            tokenize(corpus, "train:320", "lines", workers=1)
            for run in ("a", "b"):
                train_objective(
                    corpus, "conditional", Path("runs", run), seed=seed + (run == "b"), reward_model="pii",
                    objective={"kind": "conditional", "threshold": 0.0}, good={"threshold": 0.0}, validate_every=10,
                    checkpoint_every=STEPS // 2,
                )  # fmt: skip
                run_command(EVALUATE.format(run=f"runs/{run}"))
            if is_whole:
                labels = [
                    {"text": f"the {word} {number * (seed + 1)}", "label": int(word == "idiot")}
                    for number in range(40)
                    for word in ("idiot", "garden")
                ]
                Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
                for line in ("release runs/a -o release", ATTACK, DOSES, REWARD):
                    output, error = run_command(line)
                    assert error is None, (line, output, error)


def run_command(line: str) -> tuple[str, BaseException | None]:
    """What a command prints, and what it ended with; None for a good end."""
    result = CliRunner().invoke(cli.app, line.split(), standalone_mode=False)
    code = result.exit_code or result.return_value  # of `typer.Exit`, which no exception tells of
    return result.output, result.exception or (SystemExit(code) if code else None)


def read_result(command: Command, output: str) -> str:
    """What must be the same: the output, or a hash of each file that the command made."""
    if not command.results:
        return output
    paths = sorted(path for pattern in command.results for path in Path().glob(pattern) if path.is_file())
    return "\n".join(f"{path} {hashlib.sha256(read_timeless(path)).hexdigest()}" for path in paths)


def read_timeless(path: Path) -> bytes:
    """The bytes of a file; of attack.json without how long an attack took."""
    if path.name != "attack.json":
        return path.read_bytes()

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(one) for key, one in value.items() if key != "sha256"}
        if isinstance(value, list):
            return [
                strip(one) for one in value if not (isinstance(one, dict) and one.get("measure") == "seconds")
            ]
        return value

    return json.dumps(strip(json.loads(path.read_bytes()))).encode()


def read_said(command: Command, output: str) -> int:
    """How often the command tells of something damaged or missing, on its page too."""
    pages = [Path(name).read_text("utf-8") for name in command.results if name.endswith(".html")]
    return sum(len(SAID.findall(text)) for text in (output, *pages))


# --- damages ------------------------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def truncate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def change_value(data: bytes, rng: random.Random, new: list[bytes]) -> bytes | None:
    """One number of a JSON file, or of a line, replaced; None where there is none."""
    found = list(re.finditer(rb"(?<=[:\[] )-?\d[\d.e+-]*|(?<=\n )-?\d[\d.e+-]*(?=,?\n)", data))
    if not found:
        return None
    number = rng.choice(found)
    return data[: number.start()] + rng.choice(new) + data[number.end() :]


Damage = Callable[[bytes, random.Random, bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "flip": flip,
    "truncate": truncate,
    "empty": lambda data, rng, other: b"",
    "swap": lambda data, rng, other: other if other != data else None,
    "wrong type": lambda data, rng, other: change_value(data, rng, [b'"x"', b"[]", b"{}", b"null", b"true"]),
    "huge or NaN": lambda data, rng, other: change_value(
        data, rng, [b"NaN", b"1e400", b"9" * 30, b"9" * 5000]
    ),
    "other number": lambda data, rng, other: change_value(data, rng, [b"1", b"0.25"]),
    "missing": lambda data, rng, other: None,
}
JSON_ONLY = ("wrong type", "huge or NaN", "other number")


@dataclass(frozen=True)
class Case:
    """A file of a kind, a damage, and a command that reads it."""

    kind: str
    damage: str
    command: str


def list_cases() -> list[Case]:
    """Every kind of file with every damage that it can have, under every command that reads it."""
    return [
        Case(kind, damage, command)
        for kind, (pattern, commands) in KINDS.items()
        for damage in DAMAGES
        if ".json" in pattern or damage not in JSON_ONLY
        for command in commands
        if (damage, command)
        != ("missing", "stats")  # what is not there yet is not counted, and that is right
    ]


def damage_file(case: Case, rng: random.Random) -> bool:
    """Damage the file in the current folder; False where the damage would change nothing."""
    pattern, _ = KINDS[case.kind]
    path = min(Path().glob(pattern))
    others = [*Path("other").glob(pattern), *Path().glob(pattern.replace("runs/a", "runs/b"))]
    data = path.read_bytes()
    if case.damage == "missing":
        path.unlink()
        return True
    new = DAMAGES[case.damage](data, rng, others[0].read_bytes())
    if new is None or new == data:
        return False
    path.write_bytes(new)
    return True


def try_case(place: Path, case: Case, seed: int, whole: dict[str, tuple[str, int]]) -> tuple[str, str]:
    """What a command makes of a damage, and what it said. `whole` keeps the results of the whole files."""
    command = COMMANDS[case.command]
    if case.command not in whole:
        with in_copy(place):
            output, error = run_command(command.line)
            assert error is None, (command.line, output, error)
            whole[case.command] = read_result(command, output), read_said(command, output)
    with in_copy(place):
        if not damage_file(case, random.Random(f"{case} {seed}")):
            return "no change", ""
        output, error = run_command(command.line)
        leftovers = [path for path in Path().rglob(".*") if path.name.endswith((".tmp", ".partial", ".old"))]
        if leftovers:
            return "LEFTOVER", str(leftovers)
        if isinstance(error, PHFError | OSError):
            line = str(error)
            return ("refused", line) if "\n" not in line else ("TRACEBACK", line)
        if isinstance(error, SystemExit) and error.code in (1, 2):  # `release verify` prints what it found
            return "refused", output[-300:]
        if error is not None:
            return "TRACEBACK", f"{type(error).__name__}: {error}"
        if read_result(command, output) == whole[case.command][0]:
            return "harmless", ""
        if read_said(command, output) > whole[case.command][1]:
            return "said", output[-300:]
        return "SILENT", output[-300:]


@contextlib.contextmanager
def in_copy(place: Path) -> Iterator[None]:
    """A copy of the place as the current folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        with contextlib.chdir(folder):
            yield


def run_cases(
    place: Path, cases: list[Case], seed: int, say: Callable[[str], None]
) -> Counter[tuple[str, str]]:
    """Counts by (kind, outcome); faults are told as they are found."""
    counts: Counter[tuple[str, str]] = Counter()
    whole: dict[str, tuple[str, int]] = {}
    for case in cases:
        outcome, detail = try_case(place, case, seed, whole)
        counts[case.kind, outcome] += 1
        if outcome in FAULTS:
            say(f"{outcome}: {case}: {detail.strip()[:600]}")
    return counts


def format_counts(counts: Counter[tuple[str, str]]) -> str:
    """A table: a row for each kind, a column for each outcome."""
    outcomes = ("refused", "said", "harmless", "no change", *FAULTS)
    rows = [("kind", *outcomes)]
    rows += [(kind, *(str(counts[kind, outcome]) for outcome in outcomes)) for kind in dict(counts.keys())]
    rows.append(
        ("all", *(str(sum(n for (_, found), n in counts.items() if found == one)) for one in outcomes))
    )
    return "\n".join(f"{row[0]:22}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def main() -> None:
    """Run the driver by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=0, help="cases, drawn; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        make_place(Path(folder))
        cases = [
            case
            for case in list_cases()
            if case.command in given.commands.split(",") and case.kind in given.kinds.split(",")
        ]
        counts = run_cases(
            Path(folder), rng.sample(cases, given.num) if given.num else cases, given.seed, print
        )
        print(format_counts(counts))
        sys.exit(any(outcome in FAULTS for _, outcome in counts))


if __name__ == "__main__":
    main()
