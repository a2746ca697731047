"""Write what make_models.py leaves out: tiny models for the settings by which checkpoints of one architecture differ.

Each folder under variants/ is as those under models/: a checkpoint, and expected.safetensors with `input_ids` and the
`logits` that `transformers` computes.

Needs: torch, transformers, safetensors.  Usage: python make_variants.py [NAME ...]
"""
import pathlib, sys
import torch
from safetensors.torch import save_file
from transformers import (BloomConfig, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config,
                          AutoModelForCausalLM)

SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2)
OPT = dict(SMALL, ffn_dim=24, num_attention_heads=2, max_position_embeddings=20)
LLAMA = dict(SMALL, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16)
CONFIGS = {
    "opt-no-bias-gelu": OPTConfig(**OPT, enable_bias=False, layer_norm_elementwise_affine=False,
                                  activation_function="gelu"),
    "opt-no-final-norm": OPTConfig(**OPT, _remove_final_layer_norm=True, tie_word_embeddings=False),
    "bloom-residual-after-norm": BloomConfig(vocab_size=40, hidden_size=24, n_layer=2, n_head=3,
                                             apply_residual_connection_post_layernorm=True),
    "llama-biases": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, head_dim=6, hidden_act="gelu_pytorch_tanh"),
    "llama-linear": LlamaConfig(**LLAMA, rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=3.0)),
    "llama-dynamic": LlamaConfig(**LLAMA, rope_parameters=dict(rope_type="dynamic", rope_theta=1000.0, factor=3.0)),
    "llama-yarn": LlamaConfig(**LLAMA, rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0,
                                                            original_max_position_embeddings=8)),
    "mistral-no-window": MistralConfig(**LLAMA, sliding_window=None),
    "qwen2-upper-window": Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3-biases": Qwen3Config(**LLAMA, head_dim=10, attention_bias=True, tie_word_embeddings=True),
}

def write(name, config):
    torch.manual_seed(11)
    config.initializer_range = config.init_std = 0.3
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():  # biases and norms away from their trivial initial values
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.2)
        ids = torch.randint(3, config.vocab_size, (2, 20))
        logits = model(ids).logits
    folder = pathlib.Path(__file__).parent / "variants" / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file({"input_ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")
    print(name, tuple(logits.shape), float(logits.std()))

for name in sys.argv[1:] or CONFIGS:
    write(name, CONFIGS[name])
