"""Training and evaluating one model: LightningCLI, checks before a run, locks on run folders."""

COMMANDS = {
    "fit": "train a model and evaluate its best epoch on the val split",
    "validate": "evaluate a checkpoint on the val split",
    "test": "evaluate a checkpoint or an ensemble on the test split",
    "predict": "write predictions of data.predict_split to a table; labels are optional",
}
