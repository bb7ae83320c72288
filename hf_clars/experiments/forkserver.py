"""Imported by the fork server alone, which it puts into a process group of its own.

A SIGTERM for the whole group (`timeout`, Slurm) then reaches the one who asked for the runs, and only through it the
runs; without their fork server, nobody would learn how they ended.
"""

import os

os.setpgid(0, 0)
