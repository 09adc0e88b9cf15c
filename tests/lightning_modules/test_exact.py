import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import PredictionTable

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "exact_processes.py"
SIZES = (21, 5, 1)


def processes(world, folder, mutation=""):
    """The script on `world` processes; its folder afterwards."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(world), str(folder), mutation],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, resnet, larger):
    """Tables of 21, 5 and 1 test images, two members of different sizes, and one process's word."""
    folder = tmp_path_factory.mktemp("exact")
    pictures = next((tiny.root / "phantoms").glob("*/manifest.csv"))
    rows = pd.read_csv(pictures)
    rows["path"] = [str(pictures.parent / path) for path in rows["path"]]
    for size in SIZES:
        chosen = rows.iloc[:size].assign(split="test")
        chosen["id"] = [f"other{i}" for i in range(size)]
        chosen.to_csv(folder / f"{size}.csv", index=False)
    for name, run in (("member-a", resnet), ("member-b", larger)):
        shutil.copy(run / "best.ckpt", folder / f"{name}.ckpt")
    done = processes(1, folder / "one")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_processes_says_the_same(place, world):
    done = processes(world, place / f"w{world}")
    assert done.returncode == 0, done.stderr
    figures = [json.loads((place / f / "figures.json").read_text()) for f in ("one", f"w{world}")]
    assert figures[0].keys() == figures[1].keys()
    for name in figures[0]:
        one, many = (PredictionTable.read(place / f / f"{name}.parquet")
                     for f in ("one", f"w{world}"))  # fmt: skip
        assert one.rows["id"].tolist() == many.rows["id"].tolist()
        np.testing.assert_allclose(one.probabilities, many.probabilities, atol=1e-6)
        for key, value in figures[0][name].items():
            assert figures[1][name][key] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert len(figures[0]) == 2 * len(SIZES)


def test_the_default_sampler_is_found_out(place):
    done = processes(2, place / "padded", "padded")
    assert done.returncode != 0
    assert "occurs twice" in done.stderr
