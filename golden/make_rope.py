"""Write rope.json: the rotary frequencies that `transformers` computes for each kind of scaling.

A list of cases: `config` (what config.json says), `head_dim`, `max_position_embeddings`, `sequence_length`, and the
answer, `frequencies` [head_dim / 2] (f32, printed exactly) and `factor`, which cosines and sines are multiplied by.

Needs: torch, transformers.  Usage: python make_rope.py
"""
import json, pathlib
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)
YARN = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)
CASES = [  # rope_parameters, head_dim, max_position_embeddings, sequence_length
    (dict(rope_type="default", rope_theta=10000.0), 128, 4096, 100),
    (dict(rope_type="default", rope_theta=10000.0), 24, 64, 100),
    (dict(rope_type="linear", rope_theta=10000.0, factor=4.0), 64, 16384, 2048),
    (dict(rope_type="linear", rope_theta=10000.0, factor=2.5), 80, 16384, 2048),
    (dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), 128, 2048, 100),
    (dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), 128, 2048, 2048),
    (dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), 128, 2048, 2049),
    (dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0), 64, 2048, 8192),
    (LLAMA3, 128, 131072, 2048),
    (dict(LLAMA3, factor=32.0), 64, 131072, 2048),
    (YARN, 128, 131072, 2048),
    (dict(YARN, factor=40.0, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=4096), 64, 163840, 2048),
    (dict(YARN, factor=40.0, mscale=1.0, mscale_all_dim=0.707, original_max_position_embeddings=4096), 64, 163840, 2048),
    (dict(YARN, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0), 80, 131072, 2048),
    (dict(YARN, truncate=False, rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096), 64, 131072, 2048),
    (dict(YARN, factor=0.5), 64, 32768, 2048),
    (dict(YARN, rope_theta=20.0, original_max_position_embeddings=16), 8, 64, 64),
]

def case(parameters, head_dim, positions, length):
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=positions,
                         rope_parameters=dict(parameters))
    rope = LlamaRotaryEmbedding(config)
    rope(torch.zeros(1), torch.arange(length)[None])  # dynamic scaling looks at the positions
    return dict(config=dict(rope_parameters=parameters), head_dim=head_dim, max_position_embeddings=positions,
                sequence_length=length, frequencies=[float(f) for f in rope.inv_freq],
                factor=float(rope.attention_scaling))

path = pathlib.Path(__file__).parent / "rope.json"
path.write_text("[\n" + ",\n".join(json.dumps(case(*c)) for c in CASES) + "\n]\n")
