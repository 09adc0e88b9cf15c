"""A file for each verb of the command line, which has `run(args) -> exit code`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
