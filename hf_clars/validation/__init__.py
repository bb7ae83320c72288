"""What a user gave, checked: a schema of all settings, and values."""
