"""Time the SparseGPT algorithm as it was published, in PyTorch on this machine's CPU: for one layer, or a whole LLaMA.

The order of operations of the paper's Algorithm 1 as its authors run it: H accumulated over the calibration sequences as
a full product; Cholesky, inverse, Cholesky of the inverse; blocks of 128 columns, inside them one column at a time, then
the trailing update.  For a model, block by block: one forward pass that fills the Hessian of every layer, the layers one
after another, one more forward pass for the block's output.  What this project does with the same layer is printed by
`cargo bench -p prune`, with the same model by `driver prune`.

Needs: torch, for a model also transformers.
Usage: python time_published.py [SIZE ...]   (default 2048 4096)
       python time_published.py FOLDER TEXT SEQUENCES LENGTH BLOCKS
"""
import pathlib
import sys
import time

import torch


def accumulate(hessian, inputs, seen):
    total = seen + 1
    hessian *= seen / total
    inputs = inputs.t() * (2 / total) ** 0.5
    hessian += inputs.matmul(inputs.t())
    return total


def solve(weight, hessian, sparsity, pattern):
    weight, columns = weight.clone(), weight.shape[1]
    diagonal = torch.arange(columns)
    hessian[diagonal, diagonal] += 0.01 * hessian.diagonal().mean()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    for first in range(0, columns, 128):
        last = min(first + 128, columns)
        panel, factor = weight[:, first:last].clone(), inverse[first:last, first:last]
        pruned, errors = torch.zeros_like(panel), torch.zeros_like(panel)
        drop = torch.zeros_like(panel, dtype=torch.bool)
        if not pattern:
            score = panel**2 / factor.diagonal() ** 2
            drop = score <= score.flatten().sort()[0][int(score.numel() * sparsity)]
        for j in range(last - first):
            if pattern and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                score = panel[:, group] ** 2 / factor.diagonal()[group] ** 2
                drop.scatter_(1, j + score.topk(pattern[0], dim=1, largest=False)[1], True)
            column = panel[:, j].clone()
            column[drop[:, j]] = 0
            pruned[:, j] = column
            error = (panel[:, j] - column) / factor[j, j]
            panel[:, j:] -= error.unsqueeze(1).matmul(factor[j, j:].unsqueeze(0))
            errors[:, j] = error
        weight[:, first:last] = pruned
        weight[:, last:] -= errors.matmul(inverse[first:last, last:])
    return weight


def prune_model(folder, text, sequences, length, blocks):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(pathlib.Path(text).read_text(), return_tensors="pt").input_ids
    start = time.perf_counter()
    base = model.model
    with torch.no_grad():
        states = [base.embed_tokens(ids[:, i * length : (i + 1) * length]) for i in range(sequences)]
        positions = base.rotary_emb(states[0], torch.arange(length)[None])
        for number, block in enumerate(base.layers[:blocks]):
            def forward(x):
                out = block(x, attention_mask=None, position_embeddings=positions)
                return out[0] if isinstance(out, tuple) else out

            layers = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            hessians = {layer: [torch.zeros(layer.in_features, layer.in_features), 0] for layer in layers}

            def add(layer, inputs, _):
                entry = hessians[layer]
                entry[1] = accumulate(entry[0], inputs[0].reshape(-1, layer.in_features), entry[1])

            hooks = [layer.register_forward_hook(add) for layer in layers]
            for x in states:
                forward(x)
            for hook in hooks:
                hook.remove()
            for layer in layers:
                layer.weight.copy_(solve(layer.weight, hessians.pop(layer)[0], 0.5, None))
            states = [forward(x) for x in states]
            print(f"block {number + 1} of {blocks}: {time.perf_counter() - start:.1f} s", flush=True)


def main(sizes):
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in sizes:
        torch.manual_seed(0)
        inputs, weight = torch.randn(4, 2048, size), torch.randn(size, size)
        for _ in range(2):  # the second time is the one that counts
            hessian, seen, start = torch.zeros(size, size), 0, time.perf_counter()
            for sequence in inputs:
                seen = accumulate(hessian, sequence, seen)
            accumulated = time.perf_counter() - start
            times = []
            for sparsity, pattern in ((0.5, None), (0.0, (2, 4))):
                start = time.perf_counter()
                solve(weight, hessian.clone(), sparsity, pattern)
                times.append(time.perf_counter() - start)
        a, start = torch.randn(2048, 2048), time.perf_counter()
        a.matmul(a)
        rate = 2 * 2048**3 / (time.perf_counter() - start) / 1e9
        print(f"{size} x {size}, 8192 tokens: Hessian {accumulated:.2f} s, 50 % {times[0]:.2f} s, 2:4 {times[1]:.2f} s (a product of 2048^3 runs at {rate:.0f} GFLOP/s)")


if __name__ == "__main__":
    if len(sys.argv) == 6:
        prune_model(*sys.argv[1:3], *map(int, sys.argv[3:]))
    else:
        main([int(size) for size in sys.argv[1:]] or [2048, 4096])
