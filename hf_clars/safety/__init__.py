"""Files of strangers, read without harm; and what is written down for others, without secrets."""
