"""What happens beside training steps: statistics, warm-up, health, freezing."""
