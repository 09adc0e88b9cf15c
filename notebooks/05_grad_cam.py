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
from consilium.inference.data_config import load_datamodule
from consilium.inference.panels import plot_explanations
from consilium.inference.predictor import load_predictor
from consilium.inference.saliency_evaluation import evaluate_saliency, results_table, select_correct
from consilium.inference.samples import sample_rows
from evaluation.predictions import PredictionTable
from evaluation.reports.html import show
from evaluation.reports.run import most_confident
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
run = study.first_run
data = load_datamodule([study.config_file(run.name)])
data.prepare_data()
manifest = data.load_manifest()
table = PredictionTable.read(run / "predictions" / "test.parquet")
model = load_predictor(run)

# %% [markdown]
# ## What do its surest right answers rest on?

# %%
show(*plot_explanations(model, manifest, most_confident(table, correct=True, count=PICTURES)))

# %% [markdown]
# ## What misled it where it was sure and wrong?

# %%
show(*plot_explanations(model, manifest, most_confident(table, correct=False, count=PICTURES)))

# %% [markdown]
# ## Do the maps point at the lesion, and carry the answer?
# With randomized weights pointing must be lost; that is the check of the method.

# %%
show(
    results_table(
        evaluate_saliency(
            run, ["GradCAM"], select_correct(model, sample_rows(manifest, "test", MEASURED))
        )
    )
)
