# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grad-CAM
# Where does each member look, and does it look at the lesion?

# %% tags=["parameters"]
STUDY = "runs/demo"  # a study's folder; paths are told from the project's own folder
PICTURES = 3  # of right answers, and of mistakes
MEASURED = 12  # pictures that the maps are measured on

# %%
import os
from pathlib import Path

from consilium import ROOT
from consilium.inference.data_config import from_configs
from consilium.inference.panels import explained
from consilium.inference.predictor import load
from consilium.inference.saliency_evaluation import correct, measure, section
from consilium.inference.samples import some
from evaluation.predictions import PredictionTable
from evaluation.reports.answers import surest
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
run = study.first
data = from_configs([study.config(run.name)])
data.prepare_data()
manifest = data.listed()
table = PredictionTable.read(run / "predictions" / "test.parquet")
model = load(run)

# %% [markdown]
# ## What do its surest right answers rest on?

# %%
look(*explained(model, manifest, surest(table, right=True, count=PICTURES)))

# %% [markdown]
# ## What misled it where it was sure and wrong?

# %%
look(*explained(model, manifest, surest(table, right=False, count=PICTURES)))

# %% [markdown]
# ## Do the maps point at the lesion, and carry the answer?
# With randomized weights pointing must be lost; that is the check of the method.

# %%
look(section(measure(run, ["GradCAM"], correct(model, some(manifest, "test", MEASURED)))))
