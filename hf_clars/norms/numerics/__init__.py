"""Reductions, products and the forms of norms; which form is the cheapest."""
