"""Where samples stand in the tensors of a forward pass: `axis.py` says what is known, `table.py` what functions change."""
