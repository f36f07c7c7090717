"""Snippets that use a release in good mode: one runnable file per engine, and what the card says of each.

No file here is named after its engine: `examples/vllm.py` would be what `import vllm` finds. Every snippet takes the
prefix from the folder's tokenizer, so it holds for releases without control tokens too.
"""

import json
from pathlib import Path
from string import Template

from pydantic import JsonValue

from phf.files import write_bytes
from phf.release.gguf import GGUF_FILE
from phf.release.record import ReleaseRecord

EXAMPLES_FOLDER = "examples"

_TRANSFORMERS = '''\
"""Write with transformers. Needs: pip install transformers torch"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parents[1]  # or the Hub id
PROMPTS = ["", "Once upon a time"]

tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(MODEL)

page = tokenizer(PROMPTS, return_tensors="pt", padding=True)  # puts $prefix before every prompt
ids = model.generate(**page)  # generation_config.json: how to sample, and which tokens never to write
for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
    print(repr(text))
'''

_LM_EVAL = '''\
"""Score with EleutherAI's lm-evaluation-harness; all options of the command lm_eval. Needs: pip install "lm_eval[hf]"

    python with_lm_eval.py run --model release --model_args pretrained=FOLDER_OR_HUB_ID --tasks lambada_openai

The model `hf` of lm_eval 0.4 cannot do it: `prefix_token_id` is a single id, `add_bos_token` makes transformers replace
the tokenizer's prefix by <|endoftext|> alone, and without either the prefix itself is scored (loglikelihood_rolling) or
missing (a request without context).
"""

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM


@register_model("release")
class ReleaseLM(HFLM):
    """Requests are text behind <|endoftext|>; the rest of the prefix goes into the model with it, and is not scored.

    Control tokens are left out of the softmax: the text is scored, not where its segments end.
    """

    @property
    def prefix(self):
        return self.tokenizer("")["input_ids"]

    @property
    def max_length(self):
        return super().max_length - len(self.prefix) + 1

    def tok_encode(self, string, add_special_tokens=None, left_truncate_len=None, **kwargs):
        return super().tok_encode(string, False, left_truncate_len, **kwargs)

    def tok_batch_encode(self, strings, padding_side="left", left_truncate_len=None, truncation=False):
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "left"  # truncation keeps the prefix
        page = self.tokenizer(
            strings, padding=True, truncation=True, max_length=left_truncate_len, return_tensors="pt"
        )
        return page["input_ids"], page["attention_mask"]

    def _loglikelihood_tokens(self, requests, **kwargs):
        end, pages = self.prefix[0], []
        for key, context, continuation in requests:
            text = context[1:] if context[0] == end else context
            room = max(self.max_length - len(continuation), 0)
            pages.append((key, [end, *text[max(len(text) - room, 0) :]], continuation))
        return super()._loglikelihood_tokens(pages, **kwargs)

    def _model_call(self, inps, **kwargs):
        rest = inps.new_tensor(self.prefix[1:]).expand(len(inps), -1)
        logits = super()._model_call(torch.cat([inps[:, :1], rest, inps[:, 1:]], dim=1), **kwargs).float()
        logits[..., [*self.prefix[1:], *(self.model.generation_config.suppress_tokens or [])]] = -torch.inf
        return logits[:, rest.shape[1] :]


if __name__ == "__main__":
    cli_evaluate()
'''

_LLAMA_CPP = '''\
"""Write with llama.cpp. Needs: pip install llama-cpp-python tokenizers"""

from pathlib import Path

from llama_cpp import Llama
from tokenizers import Tokenizer

MODEL = Path(__file__).resolve().parents[1]
PROMPTS = ["", "Once upon a time"]

# Ids, not text: the tokenizer of this folder puts $prefix before a text, llama.cpp by itself one token at most.
tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a prompt is text
llm = Llama(str(MODEL / "$gguf"), n_ctx=0, verbose=False)
for prompt in PROMPTS:
    ids = tokenizer.encode(prompt).ids
    answer = llm.create_completion(
        ids, max_tokens=$max_new_tokens, temperature=$temperature, top_p=$top_p, top_k=0, min_p=0
    )
    print(repr(prompt + answer["choices"][0]["text"]))
llm.close()
'''

_VLLM = '''\
"""Write with vLLM. Needs: pip install vllm"""

from pathlib import Path

from transformers import GenerationConfig
from vllm import LLM

MODEL = str(Path(__file__).resolve().parents[1])  # or the Hub id
PROMPTS = ["", "Once upon a time"]

if __name__ == "__main__":  # vLLM starts processes that import this file
    llm = LLM(MODEL, dtype="float32")  # as measured; "auto" takes half precision
    settings = llm.get_default_sampling_params()  # generation_config.json, but for the tokens never to write
    never = GenerationConfig.from_pretrained(MODEL).suppress_tokens or []
    settings.logit_bias = dict.fromkeys(never, float("-inf"))
    outputs = llm.generate(PROMPTS, settings)  # puts $prefix before every prompt
    for prompt, output in zip(PROMPTS, outputs):
        print(repr(prompt + output.outputs[0].text))
'''

_VLLM_SERVER = """\
#!/bin/sh
# With an OpenAI-compatible server: vllm serve FOLDER_OR_HUB_ID --port 8000
# Its tokenizer puts $prefix before the prompt; the logit bias says which tokens never to write.
curl -s http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d '$body'
"""

_LLAMA_SERVER = """\
#!/bin/sh
# With the server of llama.cpp: llama-server -m $gguf --port 8080
# The prompt is a list of ids and text: $prefix, which the server would not put there by itself.
curl -s http://localhost:8080/completion -H 'Content-Type: application/json' -d '$body'
"""


def write_examples(folder: Path, record: ReleaseRecord) -> dict[str, str]:
    """Write the snippets into DIR/examples/ (those for llama.cpp if DIR/model.gguf is there).

    Args:
        folder: a release that is whole but for this and the card.
        record: the content of phf.json: `prefix`, `suppressed`, `tokens` and `sampling` are read.

    Returns:
        for each engine what the card says of it, in Markdown.
    """
    has_gguf = (folder / GGUF_FILE).is_file()
    files = {
        "with_transformers.py": _TRANSFORMERS,
        "with_lm_eval.py": _LM_EVAL,
        "with_vllm.py": _VLLM,
        "with_vllm_server.sh": _VLLM_SERVER,
    }
    if has_gguf:
        files |= {"with_llama_cpp.py": _LLAMA_CPP, "with_llama_server.sh": _LLAMA_SERVER}
    sampling = record.sampling.model_dump(include={"temperature", "top_p"})
    for name, text in files.items():
        values = {
            **sampling,
            "max_new_tokens": record.max_new_tokens,
            "prefix": "".join(record.prefix),
            "gguf": GGUF_FILE,
        }
        values["body"] = json.dumps(_create_body(record, with_ids=name == "with_llama_server.sh"))
        write_bytes(folder / EXAMPLES_FOLDER / name, Template(text).substitute(values).encode())
    return _describe_engines(record, has_gguf)


def _create_body(record: ReleaseRecord, *, with_ids: bool) -> dict[str, JsonValue]:
    """A request for a server; with ids for llama-server, else for one that reads OpenAI's."""
    tokens, sampling = record.tokens, record.sampling
    prompt = "Once upon a time"
    body: dict[str, JsonValue] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if with_ids:
        ids: list[JsonValue] = list(record.prefix_ids)
        return {
            "prompt": [*ids, prompt],
            "n_predict": record.max_new_tokens,
            **body,
            "top_k": 0,
            "min_p": 0,
        }
    body = {"prompt": prompt, "max_tokens": record.max_new_tokens, **body}
    if record.suppressed:
        body["logit_bias"] = {str(tokens[name]): -100 for name in record.suppressed}
    return body


def _describe_engines(record: ReleaseRecord, has_gguf: bool) -> dict[str, str]:
    """What each engine needs to know, and what it gets wrong."""
    prefix = f"`{''.join(record.prefix)}`"
    never = ", ".join(f"`{name}`" for name in record.suppressed)
    told = {
        "transformers": (
            f"`examples/with_transformers.py`. The tokenizer puts {prefix} before every text, an empty one too; batches are "
            "padded on the left. Do not pass `add_bos_token` to `AutoTokenizer`: transformers then replaces the prefix."
        ),
        "lm-evaluation-harness": (
            "`examples/with_lm_eval.py run --model release --model_args pretrained=DIR --tasks ...`. The model `hf` scores a "
            "request without context, and rolling windows, behind a single token (`prefix_token_id`), whatever its options."
        ),
        "vLLM": "`examples/with_vllm.py`, and `with_vllm_server.sh` for its server. The prefix comes from the tokenizer.",
    }
    if never:
        told["transformers"] += (
            f" A `GenerationConfig` of your own drops `suppress_tokens`: {never} may then be written."
        )
        told["vLLM"] += (
            f" It ignores `suppress_tokens`, and `bad_words` cannot name {never} (it takes text, and no text becomes that "
            "token): set `logit_bias`, in every request to a server."
        )
    if has_gguf:
        told["llama.cpp"] = (
            f"`examples/with_llama_cpp.py`, and `with_llama_server.sh` for its server; `{GGUF_FILE}` ends before the tokens "
            "that must not be written. llama.cpp puts one token before a *text*: here the last of the prefix, which is not "
            "quite what the model was trained with; pass ids, as the examples do."
        )
    return told
