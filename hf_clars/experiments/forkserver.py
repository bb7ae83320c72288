"""Imported by the fork server alone, which it puts into a process group of its own: a SIGTERM for the whole group
(`timeout`, Slurm) then reaches the one who asked for the runs, who would not learn how they ended without their server.
"""

import os

os.setpgid(0, 0)
