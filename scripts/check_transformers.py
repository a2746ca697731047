"""Load a pruned checkpoint in `transformers` and compare what it finds there with what the program reported.

Reads FOLDER/pruning.json, counts the zeros of the layers it names, and measures the perplexity on the evaluation texts
that FOLDER/pruning.toml names, in float32, window by window.  Exits with 1 if a zero count differs at all or the
perplexity by more than 1e-4 of itself (both sides sum in float32, in different orders).

Needs: torch, transformers (any of 4 or 5), Python 3.11.  Usage: python check_transformers.py FOLDER
"""
import json
import math
import pathlib
import sys
import tomllib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def perplexity(model, tokens, length):
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    total = 0.0
    with torch.no_grad():
        for batch in windows.split(max(1, 4096 // length)):
            logits = model(batch).logits[:, :-1]
            total += torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).double(), batch[:, 1:].reshape(-1), reduction="sum"
            ).item()
    return math.exp(total / (windows.numel() - len(windows))), len(windows)


def main(folder):
    report = json.loads((folder / "pruning.json").read_text())
    settings = tomllib.loads((folder / "pruning.toml").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    modules = dict(model.named_modules())
    wrong = 0
    zeros = weights = 0
    for layer in report["layers"]:
        # Some checkpoints leave out the name of the base model that transformers puts in front.
        name = next(n for n in modules if n == layer["name"] or n.endswith("." + layer["name"]))
        weight = modules[name].weight
        found = int((weight == 0).sum())
        zeros, weights = zeros + found, weights + weight.numel()
        if found != layer["zeros"]:
            print(f"{name}: {found} zeros in transformers, {layer['zeros']} reported")
            wrong += 1
    print(f"sparsity {zeros / weights:.6f} of {len(report['layers'])} layers")
    if report["perplexities"]:
        reported = report["perplexities"][-1]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(pathlib.Path(text).read_text()).input_ids for text in settings["evaluate"]]
        tokens = torch.tensor([i for text in ids for i in text])
        found, windows = perplexity(model, tokens, reported["window_length"])
        print(f"perplexity {found:.5f} on {windows} windows in transformers, {reported['perplexity']:.5f} on {reported['windows']} reported")
        wrong += windows != reported["windows"] or abs(found / reported["perplexity"] - 1) > 1e-4
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
