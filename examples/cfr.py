"""CFR (Li et al. 2024): SAM is fine-tuned on mosaics of slices and labels the scans for a second method.

Here SAM is a small network without pretrained weights; `methods.cfr.sam={weights: {hub: facebook/sam-vit-base}}` loads
those of the paper.

    python examples/cfr.py [--data DATA]
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
    "methods.cfr.sam_updates=100",  # updates of SAM on the labelled scans
    "methods.cfr.host=mean_teacher",  # method that re-trains the 3D network
    "methods.cfr.pseudo_labels=cached",  # whole scans are labelled once
    "methods.cfr.pseudo_weight=1",  # lambda, the weight of SAM's labels
]

if __name__ == "__main__":
    run(__doc__, "cfr", SETTINGS)
