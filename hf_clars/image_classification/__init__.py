"""The image classification recipe: its arguments, its data, what it prints and draws."""
