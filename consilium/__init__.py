"""The application on top of the libraries: commands, experiments, inference, serving."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
