"""What a stranger does with a release: plain transformers, and no phf. Run by `phf release verify` in a process of its own.

    python -I plain.py REQUEST.json OUT

REQUEST.json: {folder, texts, pages, prompts, num_greedy, num_samples, batch_size, max_new_tokens, seed}. OUT gets
answer.json {rows, vocabulary, texts, prompts, greedy, samples, sample_texts, unsuppressed} and logits.safetensors, a float32 [T, V] for each page.
Progress goes to stdout, a line `name done total` at a time.
"""

import importlib.abc
import json
import os
import sys
from pathlib import Path
from typing import Any


class _NoPHF(importlib.abc.MetaPathFinder):
    """Lets nobody import phf, wherever it is installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] == "phf":
            raise ImportError("phf must not be imported here")


def main(request_file: Path, out: Path) -> None:
    """Answer the request."""
    sys.meta_path.insert(0, _NoPHF())
    os.environ["HF_HUB_OFFLINE"] = "1"
    from safetensors.torch import save_file

    answer, logits = answer_request(json.loads(request_file.read_text(encoding="utf-8")))
    save_file(logits, out / "logits.safetensors")
    assert not any(name.partition(".")[0] == "phf" for name in sys.modules)
    (out / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def answer_request(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of answer.json, and the logits of each page."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = request["folder"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    end = model.generation_config.eos_token_id

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer(text).input_ids for text in texts]

    @torch.inference_mode()
    def read(pages: list[list[int]]) -> dict[str, torch.Tensor]:
        logits = {}
        for index, page in enumerate(pages):
            logits[str(index)] = model(input_ids=torch.tensor([page]), use_cache=False).logits[0].contiguous()
            tell("logits", index + 1, len(pages))
        return logits

    def write_greedily(prompts: list[list[int]]) -> list[list[int]]:
        written = []
        for index, ids in enumerate(prompts):
            new = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=request["num_greedy"])
            written.append(cut(new[0, len(ids) :].tolist()))
            tell("greedy text", index + 1, len(prompts))
        return written

    def sample(name: str) -> list[list[int]]:
        torch.manual_seed(request["seed"])
        page = tokenizer("").input_ids
        written: list[list[int]] = []
        while (missing := request["num_samples"] - len(written)) > 0:
            batch = torch.tensor([page] * min(missing, request["batch_size"]))
            new = model.generate(batch, max_new_tokens=request["max_new_tokens"])
            written += [cut(row.tolist()) for row in new[:, len(page) :]]
            tell(name, len(written), request["num_samples"])
        return written

    def cut(ids: list[int]) -> list[int]:
        """Until the end token, which is kept; padding stands behind it."""
        return ids[: ids.index(end) + 1] if end in ids else ids

    answer = {
        "rows": [len(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())],
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "texts": encode(request["texts"]),
        "prompts": (prompts := encode(request["prompts"])),
        "greedy": write_greedily(prompts),
        "samples": (samples := sample("samples")),
        "sample_texts": [tokenizer.decode(ids, skip_special_tokens=True) for ids in samples],
    }
    logits = read(request["pages"])
    if model.generation_config.suppress_tokens is not None:
        model.generation_config.suppress_tokens = None
        answer["unsuppressed"] = sample("samples with suppression off")
    return answer, logits


def tell(name: str, done: int, total: int) -> None:
    """Report progress."""
    print(f"{name}\t{done}\t{total}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
