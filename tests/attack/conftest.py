"""No attack changes a file outside of its own folder."""

import pytest

from tests.attack.outcomes import tree_hash


@pytest.fixture(autouse=True)
def decoy_home(tmp_path_factory, monkeypatch):
    """A home folder whose files must stay as they are, and a working folder to write into."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    for name in (".bashrc", ".ssh/id_rsa", "data/0.png", "runs/best.ckpt", "passwd"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    before = tree_hash(home)
    yield home
    assert tree_hash(home) == before, "a file in the home folder was changed"
