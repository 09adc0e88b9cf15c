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
# # Ensemble and diversity
# Is the ensemble better than its best member, with which voter, and why?

# %% tags=["parameters"]
EXPERIMENT = "runs/demo"  # folder of an experiment, relative to the repository root
VOTER = "soft"

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import ensemble
from evaluation.plots import ensemble as ensemble_plots
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.html import Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
val, test = experiment.tables("val"), experiment.tables("test")
fitted = ensemble.fit_voters(val)
evaluated = ensemble.evaluate_voters(fitted, test)

# %% [markdown]
# ## Is the ensemble better than its best member?

# %%
show(
    Text(ensemble_report.summary_sentence(fitted, evaluated, VOTER)),
    ensemble_plots.gain_plot(evaluated.gains),
)

# %% [markdown]
# ## Which voter is best, compared with the members?
# Voters are fitted on val and evaluated once on test.

# %%
show(
    ensemble_report.voter_table(fitted, evaluated, VOTER),
    ensemble_report.gain_table(fitted, evaluated),
)

# %% [markdown]
# ## How much weight does each member get?

# %%
names = next(iter(test.values())).class_names
show(*ensemble_report.member_weight_sections(fitted, list(test), names))

# %% [markdown]
# ## Do the members make different errors?
# An ensemble of members that always agree gains nothing.

# %%
show(ensemble_plots.agreement_plot(test), ensemble_plots.diversity_plot(evaluated))

# %%
show(
    ensemble_report.diversity_table(
        evaluated.diversity, evaluated.agreement, evaluated.rows, evaluated.nll_decomposition
    )
)

# %% [markdown]
# ## On which images do the members disagree most?

# %%
show(*ensemble_report.disputed_section(test))
