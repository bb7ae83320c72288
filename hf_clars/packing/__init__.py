"""Code, packages and data in one folder, for a machine that has torch and transformers, and no network."""
