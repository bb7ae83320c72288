"""What a run writes down of itself."""
