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
# Which regions of an image speak for the predicted class, and is the lesion among them?

# %% tags=["parameters"]
EXPERIMENT = "runs/demo"  # folder of an experiment, relative to the repository root
NUM_IMAGES = 3  # correct predictions shown, and wrong ones
NUM_EVALUATED = 12  # images for the evaluation of the maps

# %%
import os
from pathlib import Path

from consilium import ROOT
from consilium.inference.data_config import load_datamodule, sample_rows
from consilium.inference.panels import plot_explanations
from consilium.inference.predictor import load_predictor
from consilium.inference.saliency_evaluation import evaluate_saliency, results_table, select_correct
from evaluation.predictions import PredictionTable
from evaluation.reports.html import Text, show
from evaluation.reports.run import most_confident
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
run = experiment.first_run
data = load_datamodule([experiment.config_file(run.name)])
data.prepare_data()
manifest = data.load_manifest()
table = PredictionTable.read(run / "predictions" / "test.parquet")
predictor = load_predictor(run)

# %% [markdown]
# ## Which regions explain the most confident correct predictions?

# %%
correct = most_confident(table, correct=True, count=NUM_IMAGES)
show(*plot_explanations(predictor, manifest, correct))

# %% [markdown]
# ## Which regions explain the most confident wrong predictions?

# %%
wrong = most_confident(table, correct=False, count=NUM_IMAGES)
explanations = plot_explanations(predictor, manifest, wrong)
show(*explanations, *([] if explanations else [Text("No prediction is wrong.")]))

# %% [markdown]
# ## Is the maximum of a map in the lesion, and does the prediction depend on it?
# Sanity check of the method: with randomized weights the pointing game should drop.

# %%
rows = select_correct(predictor, sample_rows(manifest, "test", NUM_EVALUATED))
show(results_table(evaluate_saliency(predictor, ["GradCAM"], rows)))
