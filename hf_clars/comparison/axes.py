"""What a curve can be drawn over, and its unit: `images` are those trained on so far, `seconds` those of training."""

AXES = {"step": "steps", "epoch": "epochs", "images": "images", "seconds": "seconds"}
