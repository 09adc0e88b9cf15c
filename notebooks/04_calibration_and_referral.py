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
# # Calibration and referral
# Can the ensemble's confidence be taken at its word, and which images should a person look at?

# %% tags=["parameters"]
STUDY = "runs/demo"  # a study's folder; paths are told from the project's own folder
VOTER = "soft"

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import ensemble
from evaluation.plots import curves
from evaluation.plots import ensemble as ensemble_figures
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.answers import answers
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder
from evaluation.voters.simple import pool

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
val, test = study.tables("val"), study.tables("test")
fitted = ensemble.fit_voters(val)
chosen = fitted.ensembles[VOTER]
pooled = pool(chosen.voter, list(test.values()))
calibrated = ensemble.combine_members(chosen, list(test.values()))

# %% [markdown]
# ## Is an answer given with 90 % right nine times in ten?
# The temperature is fitted on val; on the line, confidence and accuracy agree.

# %%
look(curves.reliability({"pooled": pooled, "and calibrated": calibrated}))

# %% [markdown]
# ## And the members by themselves?

# %%
look(curves.reliability(test))

# %% [markdown]
# ## How much safer is it to answer only when sure?

# %%
look(ensemble_figures.risks({f"ensemble ({VOTER})": calibrated, **test}))

# %% [markdown]
# ## How many images would a person have to see, for which error rate?
# Thresholds and sets are chosen on val; the table says what they do on test.

# %%
look(ensemble_report.selective(fitted, val, test, VOTER))

# %% [markdown]
# ## Which answers were least sure?

# %%
answers(calibrated).sort_values("confidence").head(10)
