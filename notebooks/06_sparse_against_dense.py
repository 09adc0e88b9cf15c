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
# # Sparse against dense
# What does training with a quarter of the weights cost, and what does it save?

# %% tags=["parameters"]
EXPERIMENT = "runs/sparse_phantom"  # folder of an experiment, relative to the repository root
SPARSE, CONTROL = "ast25-seed0", "all_weights-seed0"  # run names; the control keeps all weights

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import sparsity
from evaluation.plots import curves
from evaluation.reports import comparison
from evaluation.reports.html import Plot, Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
tables, histories = experiment.tables("test"), experiment.histories()

# %% [markdown]
# ## What is saved?
# Dense kernels multiply zeros like other numbers, so zeros alone save no time.

# %%
show(*sparsity.savings_sections(experiment.run(SPARSE), tables[SPARSE]))

# %% [markdown]
# ## What does it cost, on which class, and which predictions changed?

# %%
show(*sparsity.compare_tables(tables[SPARSE], tables[CONTROL]))

# %% [markdown]
# ## How do density, loss and accuracy develop over the epochs?

# %%
selected = {name: histories[name] for name in (SPARSE, CONTROL)}
show(*[Plot(curves.learning_curves(rows), heading=name) for name, rows in selected.items()])

# %% [markdown]
# ## How do all arms of the experiment compare?

# %%
comparison_result = comparison.compare_models(tables)
show(
    Text(comparison.summary_sentence(comparison_result)),
    comparison.member_table(comparison_result),
    curves.roc_comparison(tables),
)
