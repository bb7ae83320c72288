"""The processes, the terminal and the machine that a command runs on."""
