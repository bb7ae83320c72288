"""Which learning rate to start from: the one place that says so, for defaults, warnings and help.

Of CLARS and LARS it is one number whatever the batch size, because a layer moves by up to γ_scale · η of its own norm
however large its gradient is. docs/results/starting-rates.md has the runs behind it.
"""

GAMMA_SCALE = 10.0  # of CLARS and LARS
BASE_LEARNING_RATE, BASE_BATCH_SIZE = 0.1, 128  # of linear scaling, as the paper has it for mNAG; AdaScale's, too

START = f"A start is {GAMMA_SCALE:g}, whatever the batch size"


def linear_scaling(total_batch_size: int) -> float:
    """The learning rate of mNAG for B samples a step (Goyal et al. 2017)."""
    return BASE_LEARNING_RATE * total_batch_size / BASE_BATCH_SIZE
