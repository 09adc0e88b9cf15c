"""Training and evaluating one model: LightningCLI, checks before a run, locks on run folders."""
