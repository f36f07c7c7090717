"""Random causal language models of many architectures, as small as they can be built; nothing is downloaded."""

from collections.abc import Callable

import torch
import transformers as hf
from transformers import PreTrainedModel

NUM_IDS, CONTEXT = 320, 64


def create_architecture(name: str, *, is_fresh: bool = False, num_ids: int = NUM_IDS) -> PreTrainedModel:
    """One of `ARCHITECTURES` in evaluation mode.

    Args:
        is_fresh: as its class draws it, with matrices near 0; else with weights of a trained model's size.
    """
    torch.manual_seed(0)
    model = ARCHITECTURES[name](num_ids).eval()
    if not is_fresh:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
                elif parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _named(config: type, model: type, **options: object) -> Callable[[int], PreTrainedModel]:
    """A class whose configuration has Llama's names."""
    sizes: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return lambda num_ids: model(config(**{"vocab_size": num_ids, **sizes, **options}))


def _own(config: type, model: type, **options: object) -> Callable[[int], PreTrainedModel]:
    """A class whose configuration has names of its own."""
    return lambda num_ids: model(
        config(**{"vocab_size": num_ids, "bos_token_id": 0, "eos_token_id": 0, **options})
    )


_GPT = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
_STATES = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": None}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 1,
}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}

ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": _named(hf.LlamaConfig, hf.LlamaForCausalLM),
    "gpt2": _own(hf.GPT2Config, hf.GPT2LMHeadModel, **_GPT, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "neox": _named(hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM),
    "phi": _named(hf.PhiConfig, hf.PhiForCausalLM),
    "qwen2": _named(hf.Qwen2Config, hf.Qwen2ForCausalLM),
    "qwen3": _named(hf.Qwen3Config, hf.Qwen3ForCausalLM, head_dim=16),
    "gemma": _named(hf.GemmaConfig, hf.GemmaForCausalLM, head_dim=8),
    "gemma2": _named(hf.Gemma2Config, hf.Gemma2ForCausalLM, head_dim=8),
    "gemma2-uncapped": _named(
        hf.Gemma2Config, hf.Gemma2ForCausalLM, head_dim=8, final_logit_softcapping=None
    ),
    "gemma3": _named(hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, head_dim=8, sliding_window=8),
    "gptj": _own(hf.GPTJConfig, hf.GPTJForCausalLM, **_GPT, rotary_dim=4),
    "gpt-neo": _own(
        hf.GPTNeoConfig,
        hf.GPTNeoForCausalLM,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=CONTEXT,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    "mistral": _named(hf.MistralConfig, hf.MistralForCausalLM, sliding_window=8),
    "mixtral": _named(hf.MixtralConfig, hf.MixtralForCausalLM, num_local_experts=2),
    "olmo2": _named(hf.Olmo2Config, hf.Olmo2ForCausalLM),
    "stablelm": _named(hf.StableLmConfig, hf.StableLmForCausalLM),
    "ctrl": _own(hf.CTRLConfig, hf.CTRLLMHeadModel, **_GPT, dff=48),
    "bigcode": _own(hf.GPTBigCodeConfig, hf.GPTBigCodeForCausalLM, **_GPT),
    "cohere": _named(hf.CohereConfig, hf.CohereForCausalLM),
    "granite": _named(hf.GraniteConfig, hf.GraniteForCausalLM, logits_scaling=8.0),
    "opt": _own(
        hf.OPTConfig,
        hf.OPTForCausalLM,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=32,
        pad_token_id=1,
        dropout=0.0,
    ),
    "xglm": _own(
        hf.XGLMConfig,
        hf.XGLMForCausalLM,
        d_model=32,
        num_layers=2,
        attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=CONTEXT,
        pad_token_id=1,
        dropout=0.0,
    ),
    "bloom": _own(hf.BloomConfig, hf.BloomForCausalLM, hidden_size=32, n_layer=2, n_head=4),
    "mpt": _own(hf.MptConfig, hf.MptForCausalLM, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT),
    "falcon": _own(hf.FalconConfig, hf.FalconForCausalLM, **_FALCON),
    "falcon-alibi": _own(hf.FalconConfig, hf.FalconForCausalLM, **_FALCON, alibi=True, multi_query=False),
    "biogpt": _named(hf.BioGptConfig, hf.BioGptForCausalLM, pad_token_id=1),
    "openai-gpt": _own(hf.OpenAIGPTConfig, hf.OpenAIGPTLMHeadModel, **_GPT),
    "gpt-oss": _named(
        hf.GptOssConfig,
        hf.GptOssForCausalLM,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=8,
    ),
    "mamba": _own(hf.MambaConfig, hf.MambaForCausalLM, **_STATES),
    "mamba2": _own(
        hf.Mamba2Config,
        hf.Mamba2ForCausalLM,
        **_STATES,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
    "falcon-mamba": _own(hf.FalconMambaConfig, hf.FalconMambaForCausalLM, **_STATES),
    "rwkv": _own(
        hf.RwkvConfig, hf.RwkvForCausalLM, context_length=CONTEXT, hidden_size=32, num_hidden_layers=2
    ),
    "recurrent-gemma": _own(
        hf.RecurrentGemmaConfig,
        hf.RecurrentGemmaForCausalLM,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=96,
        lru_width=32,
        attention_window_size=16,
    ),
    "jamba": _named(
        hf.JambaConfig,
        hf.JambaForCausalLM,
        **_EXPERTS,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
    ),
    "bamba": _named(
        hf.BambaConfig,
        hf.BambaForCausalLM,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
    "lfm2": _named(hf.Lfm2Config, hf.Lfm2ForCausalLM, full_attn_idxs=[1]),
    "qwen3-next": _named(
        hf.Qwen3NextConfig,
        hf.Qwen3NextForCausalLM,
        **_EXPERTS,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "bert-decoder": _own(hf.BertGenerationConfig, hf.BertGenerationDecoder, **_BERT, is_decoder=True),
    "bert": _own(hf.BertConfig, hf.BertLMHeadModel, **_BERT, is_decoder=True),
    "bert-both-ways": _own(hf.BertGenerationConfig, hf.BertGenerationDecoder, **_BERT),
    "llama4": _named(
        hf.Llama4TextConfig,
        hf.Llama4ForCausalLM,
        head_dim=8,
        num_local_experts=2,
        attention_chunk_size=8,
        intermediate_size_mlp=48,
    ),
}
