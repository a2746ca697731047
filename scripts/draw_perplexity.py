"""Draw docs/perplexity.svg: what pruning costs in perplexity, by method, from the reports of finished runs.

Each FOLDER is a pruned checkpoint whose run compared the methods; its pruning.json holds the numbers.  For the picture
of the README, with D=assets/demo:

    for how in "--sparsity 0.5" "--pattern 2:4" "--sparsity 0.7"; do
        driver prune $D --calibration $D/calibration.txt --evaluate $D/evaluation.txt --baselines $how
    done
    python scripts/draw_perplexity.py pruned/demo-sparsegpt-50 pruned/demo-sparsegpt-2of4 pruned/demo-sparsegpt-70

Needs: Python 3.9, nothing else.  Usage: python draw_perplexity.py FOLDER ...
"""
import json
import pathlib
import sys

METHODS = [("magnitude", "magnitude", "#a3adba"), ("wanda", "Wanda", "#e0a458"), ("sparsegpt", "SparseGPT", "#1f6f8b")]
INK, PALE, FRAME = "#24292f", "#6b7480", "#d8dee4"
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 188, 84, 84, 64
ROW, GAP = 26, 22


def text(x, y, content, size=14, fill=INK, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{content}</text>')


def read(folder):
    """The pattern of a run, its perplexities by method, None for the dense model, and what they were measured on."""
    report = json.loads((pathlib.Path(folder) / "pruning.json").read_text())
    found = report["perplexities"]
    windows = f"{found[0]['windows']} windows of {found[0]['window_length']} tokens"
    return report["pattern"], {entry["method"]: entry["perplexity"] for entry in found}, windows


def draw(runs):
    dense, windows = runs[0][1][None], runs[0][2]
    assert all(abs(found[None] / dense - 1) < 1e-6 for _, found, _ in runs), "the runs are of different models or texts"
    first = int(dense) // 5 * 5
    last = -(-int(max(max(found.values()) for _, found, _ in runs) + 1) // 5) * 5

    def place(perplexity):
        return LEFT + (perplexity - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    height = TOP + len(runs) * (len(METHODS) * ROW + GAP) - GAP + BOTTOM
    bottom = height - BOTTOM + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        "<title>Perplexity of the demonstration model, dense and pruned three ways</title>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="{FRAME}"/>',
        text(24, 34, "Perplexity of the demonstration model after pruning", 17, weight="600"),
        text(24, 56, f"held-out text, {windows}; bars begin at the dense model, shorter is better", 13, PALE),
    ]
    for tick in range(first, last + 1, 5):
        x = place(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{FRAME}"/>')
        parts.append(text(x, bottom + 18, tick, 12, PALE, "middle"))
    y = TOP
    for pattern, found, _ in runs:
        middle = y + len(METHODS) * ROW / 2
        parts.append(text(24, middle + 6, pattern, 17, weight="600"))
        for key, name, color in METHODS:
            end, center = place(found[key]), y + ROW / 2
            weight = "600" if key == "sparsegpt" else "normal"
            parts.append(text(LEFT - 12, center + 5, name, 13, INK, "end", weight))
            parts.append(f'<rect x="{place(dense):.1f}" y="{y + 4}" width="{end - place(dense):.1f}" '
                         f'height="{ROW - 8}" rx="2" fill="{color}"/>')
            parts.append(text(end + 8, center + 5, f"{found[key]:.2f}", 13, INK, weight=weight))
            y += ROW
        y += GAP
    x = place(dense)
    parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}" stroke-width="1.5"/>')
    parts.append(text(x, bottom + 36, f"dense {dense:.2f}", 13, INK, "middle", "600"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    target = pathlib.Path(__file__).parent.parent / "docs" / "perplexity.svg"
    target.write_text(draw([read(folder) for folder in sys.argv[1:]]))
