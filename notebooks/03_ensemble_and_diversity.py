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
# # The ensemble and its diversity
# Is the ensemble worth more than its best member, by which vote, and why?

# %% tags=["parameters"]
STUDY = "runs/demo"  # a study's folder; paths are told from the project's own folder
VOTER = "soft"

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import ensemble
from evaluation.plots import ensemble as ensemble_figures
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.html import Text
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
val, test = study.tables("val"), study.tables("test")
fitted = ensemble.fit_voters(val)
judged = ensemble.evaluate_voters(fitted, test)

# %% [markdown]
# ## Is the ensemble worth more than its best member?

# %%
look(Text(ensemble_report.sentence(fitted, judged, VOTER)), ensemble_figures.gains(judged.gains))

# %% [markdown]
# ## Which vote is best, and how do the members stand beside it?
# Voters are fitted on val and judged once on test.

# %%
look(ensemble_report.voters(fitted, judged, VOTER), ensemble_report.paired(fitted, judged))

# %% [markdown]
# ## How much of the vote does each member get?

# %%
look(*ensemble_report.weights(fitted, test))

# %% [markdown]
# ## Do the members err on different images?
# Members that agree on everything gain nothing from each other.

# %%
look(ensemble_figures.agreement(test), ensemble_figures.diversity(judged))

# %%
look(ensemble_report.pairs(judged))

# %% [markdown]
# ## Which images divide them?

# %%
look(*ensemble_report.disputes(test))
