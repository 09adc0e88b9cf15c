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
from evaluation.reports.html import Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
val, test = study.tables("val"), study.tables("test")
fitted = ensemble.fit_voters(val)
judged = ensemble.evaluate_voters(fitted, test)

# %% [markdown]
# ## Is the ensemble worth more than its best member?

# %%
show(
    Text(ensemble_report.summary_sentence(fitted, judged, VOTER)),
    ensemble_figures.gain_plot(judged.gains),
)

# %% [markdown]
# ## Which vote is best, and how do the members stand beside it?
# Voters are fitted on val and judged once on test.

# %%
show(ensemble_report.voter_table(fitted, judged, VOTER), ensemble_report.gain_table(fitted, judged))

# %% [markdown]
# ## How much of the vote does each member get?

# %%
names = next(iter(test.values())).class_names
show(*ensemble_report.member_weight_sections(fitted, list(test), names))

# %% [markdown]
# ## Do the members err on different images?
# Members that agree on everything gain nothing from each other.

# %%
show(ensemble_figures.agreement_plot(test), ensemble_figures.diversity_plot(judged))

# %%
show(ensemble_report.pairwise_diversity_table(judged))

# %% [markdown]
# ## Which images divide them?

# %%
show(*ensemble_report.disputed_section(test))
