"""Which learning rate to start from: the one place that says so, for defaults, warnings and help."""

BASE_LEARNING_RATE, BASE_BATCH_SIZE = 0.1, 128  # of linear scaling, as the paper has it


def starting_rate(total_batch_size: int) -> float:
    """`γ_scale` by linear scaling, for B samples a step."""
    return BASE_LEARNING_RATE * total_batch_size / BASE_BATCH_SIZE


START = f"A start is {BASE_LEARNING_RATE} × B / {BASE_BATCH_SIZE}, with B the samples of one optimizer step"
