"""The training arguments: options, their ranges, and what follows from them."""
