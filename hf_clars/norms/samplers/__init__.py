"""How each operator's per-sample gradients come from its input and the derivative by its output."""
