"""consilium cache: what the stores of prepared pictures hold; build them, or clear them."""

import argparse
from pathlib import Path

from consilium.cli import words
from consilium.inference import data_config
from datamodules import cache


def run(args: list[str]) -> int:
    """Carries out `cache info`, `cache build` or `cache clear`."""
    asked = parser().parse_args(args)
    if asked.verb == "build":
        return build(asked.config, asked.root)
    root = Path(asked.root)
    if not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    if asked.verb == "clear":
        print(f"{cache.clear(root)} stores removed from {root}")
        return 0
    found = cache.stores(root)
    for name, count, size in found:
        print(f"{name}  {count:8,} pictures  {size / 2**20:10,.1f} MiB")
    print(f"{len(found)} stores in {root}, {sum(s for _, _, s in found) / 2**20:,.1f} MiB")
    return 0


def build(configs: list[str], root: str) -> int:
    """Makes the store of a config's data, in the folder that the config names or else the root."""
    data = data_config.from_configs(configs)
    data.source.prepare()
    manifest = data.listed()
    folder = Path(data.reading.cache or root)
    store = cache.opened(manifest.table["path"].tolist(), data.preprocess, folder)
    for reason in store.failures.values():
        print(f"cannot be read: {reason}")
    print(f"{len(store.entries):,} pictures in {store.folder}")
    train = manifest.table["path"].iloc[manifest.rows("train")]
    mean, std = store.statistics([path for path in train if path in store.entries])
    print(f"training split: mean {_short(mean)}, std {_short(std)}")
    return 0


def _short(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("cache", __doc__)
    verbs = main.add_subparsers(dest="verb", required=True, metavar="info|build|clear")
    for verb, what in (
        ("info", "list the stores"),
        ("build", "make the store of a config's data"),
        ("clear", "remove every store"),
    ):
        sub = verbs.add_parser(verb, help=what, description=what)
        sub.add_argument("--root", default="data/cache", metavar="DIR", help="(data/cache)")
    add = verbs.choices["build"].add_argument
    add("--config", action="append", required=True, help="a config with a data part")
    return main
