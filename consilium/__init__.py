"""The application on top of the libraries: commands, experiments, inference, serving."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a source tree, or site-packages
PACKAGED_CONFIGS = Path(__file__).resolve().with_name("configs")
IS_INSTALLED = PACKAGED_CONFIGS.is_dir()
CONFIGS = PACKAGED_CONFIGS if IS_INSTALLED else ROOT / "configs"
