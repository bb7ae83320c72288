"""Where samples stand in tensors: `axis.py` says what is known, `table.py` how functions move it."""
