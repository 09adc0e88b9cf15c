"""The help of the training commands, which is printed without importing torch."""

from consilium.training import COMMANDS

USAGE = "consilium {command} --config FILE [--config FILE ...] [--run FOLDER] [ARGUMENTS]"
EXAMPLES = {
    "fit": """\
  consilium fit --config configs/base.yaml --config configs/demo/resnet10t.yaml --run runs/resnet10t
  consilium fit --config configs/base.yaml --config configs/demo/resnet10t.yaml \\
    --config configs/recipe/focal.yaml --trainer.max_epochs 3 --run runs/focal
  consilium fit --config runs/resnet10t/config.yaml --run runs/resnet10t --ckpt_path last  # resume
""",
    "validate": """\
  consilium validate --run runs/resnet10t
  consilium validate --ckpt_path runs/resnet10t/best.ckpt --run runs/again
""",
    "test": """\
  consilium test --run runs/resnet10t
  consilium test --ckpt_path runs/resnet10t/best.ckpt --run runs/again
  consilium test --run runs/resnet10t --tta [hflip]
  consilium test runs/resnet10t --data b/labels.csv --name hospital_b
""",
    "predict": """\
  consilium predict --run runs/resnet10t
  consilium predict --config runs/resnet10t/config.yaml --data.predict_split val --run runs/val
  consilium predict --run runs/resnet10t --sets 0.9
""",
}
OPTIONS = {
    "fit": """\
  --test true                 also evaluate the best epoch on the test split
  --auto_batch                halve the batch while memory is exceeded; accumulate more gradients

early stopping and learning rate:
  --early_stopping.patience N           epochs without improvement before the fit stops
  --model.optimizer.name NAME           adamw, adam, sgd, or another optimizer of timm
  --model.optimizer.lr LR               peak learning rate
  --model.lr_scheduler.name NAME        none, cosine, onecycle, step, cyclic or plateau
  --model.lr_scheduler.warmup_epochs N  length of the warm-up
""",
    "predict": """\
  --sets RATE                 add the column prediction_set: the classes that contain the right one
                              at this rate in images of new patients, in each class; by val
""",
    "test": """
other data, a config, table or folder; the run comes first, its pipeline stays as it is:
  --data OTHER                compare with the run's own test, in RUN/external/NAME
  --name NAME                 name of the other data, such as hospital_b
  --net_benefit VALUE         net benefit to reach; default: that of the run's own test
""",
}
TEXT = """\
usage: {usage}

{summary}.

examples:
{examples}
run:
  --config FILE               settings; a later file overrides an earlier one, arguments override
                              files. Without it, config.yaml beside --ckpt_path or in --run is used
  --run FOLDER                run folder (runs/default)
  --ckpt_path FILE|best|last  {checkpoint}
  --seed_everything SEED      seed of all random numbers (0)
  --tta LIST                  test-time augmentations, such as [hflip]
  --allow_other_preprocess true
                              evaluate with another preprocess than the checkpoint's
  --print_config              print all settings and exit
{options}
data, model and trainer, the most used of their arguments:
  --data.batch_size N                  images per batch and process
  --data.num_workers N                 loader processes
  --data.preprocess.size N             side of the input in pixels
  --model.backbone NAME                a timm name; consilium backbones lists them
  --model.pretrained true              download pretrained weights
  --trainer.max_epochs N               epochs
  --trainer.accelerator NAME           auto, cpu or gpu
  --trainer.devices N                  number of devices
  --trainer.precision NAME             32-true, bf16-mixed or 16-mixed
  --trainer.accumulate_grad_batches N  batches per optimizer step
  --trainer.fast_dev_run true          one batch of each split, to try a config; keeps no file

All of them, each of which can be set in a config file as well, are listed by
  consilium {command} --data.help datamodules.ImageDataModule
  consilium {command} --model.help lightning_modules.ImageClassifier
  consilium {command} --trainer.help
"""


def help_text(command: str) -> str:
    """What `consilium COMMAND --help` prints for a training command."""
    checkpoint = (
        "resume from it" if command == "fit" else "weights (best.ckpt of --run or beside --config)"
    )
    return TEXT.format(
        usage=USAGE.format(command=command), summary=COMMANDS[command].capitalize(),
        examples=EXAMPLES[command], checkpoint=checkpoint,
        options=OPTIONS.get(command, ""), command=command,
    )  # fmt: skip
