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
from evaluation.reports.html import show
from evaluation.reports.run import predictions_frame
from evaluation.results import ExperimentFolder
from evaluation.voters.simple import pool_tables

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
val, test = study.tables("val"), study.tables("test")
fitted = ensemble.fit_voters(val)
chosen = fitted.ensembles[VOTER]
pooled = pool_tables(chosen.voter, list(test.values()))
calibrated = ensemble.combine_members(chosen, list(test.values()))

# %% [markdown]
# ## Is an answer given with 90 % right nine times in ten?
# The temperature is fitted on val; on the line, confidence and accuracy agree.

# %%
show(curves.reliability_plot({"pooled": pooled, "and calibrated": calibrated}))

# %% [markdown]
# ## And the members by themselves?

# %%
show(curves.reliability_plot(test))

# %% [markdown]
# ## How much safer is it to answer only when sure?

# %%
show(ensemble_figures.risk_coverage_plot({f"ensemble ({VOTER})": calibrated, **test}))

# %% [markdown]
# ## How many images would a person have to see, for which error rate?
# Thresholds and sets are chosen on val; the table says what they do on test.

# %%
fitted_on = ensemble.combine_members(chosen, list(val.values()))
rules, aurc = ensemble.evaluate_selective(fitted_on, calibrated)
show(ensemble_report.selective_table(rules, aurc, calibrated))

# %% [markdown]
# ## Which answers were least sure?

# %%
predictions_frame(calibrated).sort_values("confidence").head(10)
