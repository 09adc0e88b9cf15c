"""List, build or delete caches of preprocessed images and of features of networks.

A cache has one store for each dataset and preprocessing, and one for each network whose features a
linear probe uses. `fit` builds them by itself, that of a dataset if the data has `cache_dir`;
building it in advance shows unreadable files, and mean and std of the training images.
"""

import argparse
from pathlib import Path

ACTIONS = {
    "info": "list the stores of a cache",
    "build": "build the store of a dataset",
    "clear": "delete all stores of a cache",
}
EXAMPLES = """\
examples:
  consilium cache build --config configs/data/fracture.yaml
  consilium cache info
"""


def run(options: argparse.Namespace) -> int:
    """Runs `cache info`, `cache build` or `cache clear`."""
    from datamodules import cache

    if options.action == "build":
        return build(options.config, options.root)
    root = options.root
    if not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    if options.action == "clear":
        count, remaining = cache.clear_stores(root)
        print(f"{count} stores deleted from {root}")
        for folder in remaining:
            print(f"{folder}: kept, since it contains other files")
        return 0
    stores = cache.list_stores(root)
    for name, count, num_bytes in stores:
        print(f"{name}  {count:8,} images  {num_bytes / 2**20:10,.1f} MiB")
    total = sum(num_bytes for _, _, num_bytes in stores)
    print(f"{len(stores)} stores in {root}, {total / 2**20:,.1f} MiB")
    return 0


def build(configs: list[str], root: Path) -> int:
    """Stores the preprocessed images of a config's data in its `cache_dir`, else in `root`."""
    from consilium.inference import data_config
    from datamodules import cache

    data = data_config.load_datamodule(configs)
    data.source.prepare()
    manifest = data.load_manifest()
    folder = Path(data.cache_dir or root)
    store = cache.open_store(manifest.table["path"].tolist(), data.preprocess, folder)
    for reason in store.failures.values():
        print(f"cannot be read: {reason}")
    print(f"{len(store.entries):,} images in {store.folder}")
    train = manifest.table["path"].iloc[manifest.rows("train")]
    mean, std = store.channel_statistics([path for path in train if path in store.entries])
    mean_text, std_text = (", ".join(f"{value:.4f}" for value in v) for v in (mean, std))
    print(f"training split: mean [{mean_text}], std [{std_text}]")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    for action, summary in ACTIONS.items():
        add = actions.add_parser(action, help=summary, description=summary).add_argument
        add("--root", type=Path, default="data/cache", metavar="DIR", help="(data/cache)")
    add = actions.choices["build"].add_argument
    add("--config", action="append", required=True, help="config with the data")
