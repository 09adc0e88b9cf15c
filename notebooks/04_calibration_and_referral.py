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
# Is the ensemble's confidence calibrated, and which images should a person review?

# %% tags=["parameters"]
EXPERIMENT = "runs/demo"  # folder of an experiment, relative to the repository root
VOTER = "soft"

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import ensemble
from evaluation.plots import curves
from evaluation.plots import ensemble as ensemble_plots
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.conformal import conformal_tables
from evaluation.reports.html import show
from evaluation.reports.run import predictions_frame
from evaluation.results import ExperimentFolder
from evaluation.voters.simple import pool_tables

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
val, test = experiment.tables("val"), experiment.tables("test")
fitted = ensemble.fit_voters(val)
voter_ensemble = fitted.ensembles[VOTER]
pooled = pool_tables(voter_ensemble.voter, list(test.values()))
calibrated = ensemble.combine_members(voter_ensemble, list(test.values()))

# %% [markdown]
# ## Are predictions with 90 % confidence correct in 90 % of the cases?
# The temperature is fitted on val. On the diagonal, confidence equals accuracy.

# %%
show(curves.reliability_plot({"uncalibrated": pooled, "calibrated": calibrated}))

# %% [markdown]
# ## How well are the single members calibrated?

# %%
show(curves.reliability_plot(test))

# %% [markdown]
# ## How does the error rate fall if uncertain images are referred?

# %%
show(ensemble_plots.risk_coverage_plot({f"ensemble ({VOTER})": calibrated, **test}))

# %% [markdown]
# ## How many images must be referred to reach which error rate?
# Thresholds and prediction sets are chosen on val and evaluated on test.

# %%
fitted_on = ensemble.combine_members(voter_ensemble, list(val.values()))
rules, aurc = ensemble.evaluate_referral(fitted_on, calibrated)
referral = ensemble_report.referral_table(rules, aurc, calibrated)
show(referral, *conformal_tables(fitted_on, calibrated))

# %% [markdown]
# ## Which predictions are least certain?

# %%
predictions_frame(calibrated).sort_values("confidence").head(10)
