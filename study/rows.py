"""The rows of the study: what is trained, and what each is compared with."""

# What differs from the protocol: ResNet-20 v1, GAAF_relu, slope 1, Adam 1e-3 with the step
# schedule, batch 128, no augmentation. The test accuracy that counts is that of the last epoch.
SHIFTS = (5, 4, 3, 2, 1, 0, -0.5, -1, -2, -3, -4)
GAIN_1 = {"gain": 1.0}
PAPER = {"slope": 5, "shift": 0.5, **GAIN_1}
PEAK = {**PAPER, "gain": "peak"}
RELU = {"activation": "relu"}
AUGMENTED = {"data_augmentation": True, "precision": "mixed_bfloat16"}
ROWS = {
    "relu": RELU,
    "relu, weight decay 2e-4": {**RELU, "weight_decay": 2e-4},  # beside "shift -1, peak"
    "paper": PAPER,
    "paper, peak": PEAK,
    "bsilu": {"shape": "bsilu", "wave": "none", **GAIN_1},
    **{f"shift {shift:g}": {"shift": shift, **GAIN_1} for shift in SHIFTS},
    "shift -1, peak": {"shift": -1, "gain": "peak"},
    "no s": {"shape": "none", **GAIN_1},
    "round": {"shift": -1, "wave": "round", **GAIN_1},
    "tanh": {"activation": "tanh"},
    "GAAF_tanh": {"activation": "GAAF_tanh", **GAIN_1},
    "GAAF_tanh, peak": {"activation": "GAAF_tanh", "gain": "peak"},
    "nelu": {"shape": "nelu", "wave": "none", **GAIN_1},
    "leaky": {"shape": "leaky", "wave": "none", **GAIN_1},
    "B-SiLU": {"activation": "b_silu"},
    "AdamW, relu": {"optimizer": "adamw", **RELU},
    "AdamW, paper": {"optimizer": "adamw", **PAPER},
    "AdamW, paper, peak": {"optimizer": "adamw", **PEAK},
    "v2, relu": {"version": 2, **RELU},
    "v2, paper, peak": {"version": 2, **PEAK},
    # What everybody quotes, for 200 epochs: the Keras example reports 0.9216, the paper 0.9125.
    "augmented, relu": {**AUGMENTED, **RELU},
    "augmented, paper, peak": {**AUGMENTED, **PEAK},
}


def is_accelerated(row):
    """Whether a row trains with GAAF; one that has left the table counts as if it did."""
    return ROWS.get(row, {}).get("activation", "GAAF_relu").startswith("GAAF_")


def plain_row(row):
    """The row that a row is compared with: the same network and data with the plain activation."""
    if "tanh" in row:
        return "tanh"
    group = f"{row.partition(', ')[0]}, relu"
    return group if group in ROWS else "relu"
