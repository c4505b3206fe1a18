"""CFR_FT (Li et al. 2024): the fine-tuned SAM of CFR segments volumes itself.

It is trained on the labelled scans and shares the settings of `cfr`.

    python examples/cfr_ft.py [--data DATA]
"""

from example import run

SAM = """{
    finetune: whole,
    vision: {
        image_size: 160, patch_size: 8, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 2, mlp_dim: 96,
        output_channels: 32, window_size: 8, global_attn_indexes: [1],
    },
    decoder: {hidden_size: 32, mlp_dim: 64, num_attention_heads: 2, iou_head_hidden_dim: 16},
}"""
SETTINGS = [
    "updates=300",
    f"methods.cfr.sam={SAM}",
    "methods.cfr.bend=0.5",  # share of the slices whose intensities are mapped by a random curve
]

if __name__ == "__main__":
    run(__doc__, "cfr_ft", SETTINGS)
