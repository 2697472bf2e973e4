"""The policies that an evaluation compares: a base, and what trainings made of it.

A policy is a training run's folder (`run.json` and `model/`), a model or adapter folder, or a hub name.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.model_names import BASE, ModelSource, resolve_model
from cot.utils.paths import DATA_DIR
from rl.runs import read_run

POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
NAMES_BY_MEMORY = {"own": "ipo", "none": "no_memory", "shuffled": "shuffled_memory"}  # of the run's prompts
MAKE_ONE = "make one with: python rl/train_rl_memory.py; or name policies with --trained NAME=PATH"


@dataclass(frozen=True)
class Policy:
    """One model that answers.

    Attributes:
        run: the folder of the training run that made it; None for a model that was only named.
        config: that run's settings; empty without a run.
    """

    name: str
    source: ModelSource
    run: Path | None = None
    config: dict = field(default_factory=dict)

    def describe(self) -> dict:
        """What a result file records about it."""
        return {
            "name": self.name,
            "model": self.source.name,
            "kind": self.source.kind,
            "revision": self.source.revision,
            "run": str(self.run) if self.run else None,
            "memory": self.config.get("memory"),
            "reward_weights": self.config.get("weights"),
            "training_seed": self.config.get("seed"),
        }


def parse_trained(text: str) -> tuple[str | None, str]:
    """`NAME=PATH`, or a path alone, for argparse's `type`.

    >>> parse_trained("ipo=data/tutor/rl_1"), parse_trained("data/tutor/rl_1")
    (('ipo', 'data/tutor/rl_1'), (None, 'data/tutor/rl_1'))
    """
    name, separator, path = text.partition("=")
    if not separator:
        return None, text
    if not POLICY_NAME.fullmatch(name) or name == BASE or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME=PATH, the name of A-Z a-z 0-9 . _ - and not {BASE!r}"
        )
    return name, path


def newest_run(root: Path = DATA_DIR) -> Path:
    """The completed training run that started last.

    Raises:
        UserError: there is none; says how to make one.
    """
    runs = [(read_run(file.parent), file.parent) for file in root.glob("*/rl_*/run.json")]
    complete = [
        (str(run.get("started")), folder)
        for run, folder in runs
        if run.get("status") == "success" and (folder / "model").is_dir()
    ]
    if not complete:
        raise UserError(f"{root}: no completed training run; {MAKE_ONE}")
    return max(complete)[1]


def resolve_policies(
    base: str | None, trained: Sequence[tuple[str | None, str]] | None, revision: str | None = None
) -> list[Policy]:
    """The base first, then the trained ones; without names the newest run and its base.

    Args:
        revision: of the base; None for the one that the runs began with, and else its main branch.

    Raises:
        UserError: nothing there, a run that is not finished, two policies of one name, or no single base.
    """
    named = trained or [(None, str(newest_run()))]
    policies = [_resolve_trained(name, path) for name, path in named]
    names = [policy.name for policy in policies]
    if repeated := sorted(name for name in set(names) if names.count(name) > 1):
        raise UserError(f"--trained: two policies are called {repeated[0]}; name them with NAME=PATH")

    bases = {_name_base(**policy.config["model"]) for policy in policies if policy.config}
    bases |= {
        _name_base(policy.source.base.name, policy.source.base.kind, policy.source.base.revision)
        for policy in policies
        if policy.source.base and not policy.config
    }
    if base is None and len(bases) != 1:
        found = f"the policies have {len(bases)} bases" if bases else "no policy names its base"
        raise UserError(f"--base: {found}; name the model to compare with")
    name, begun_with = (base, None) if base else bases.pop()
    return [Policy(BASE, resolve_model(name, revision or begun_with)), *policies]


def _name_base(name: str, kind: str = "", revision: str = "", **_) -> tuple[str, str | None]:
    """The name of a model, and the commit of a hub model, as a result file describes it."""
    return name, revision if kind == "hub" else None


def _resolve_trained(name: str | None, path: str) -> Policy:
    folder = Path(path).expanduser()
    if not (folder / "run.json").is_file():
        return Policy(name or folder.name, resolve_model(path))
    run = read_run(folder)
    config = run.get("config") or {}
    if run.get("status") != "success" or "name" not in config.get("model", {}):
        raise UserError(
            f"--trained {path}: this training run is not finished (status {run.get('status')});"
            " continue it with the command that began it"
        )
    name = name or NAMES_BY_MEMORY.get(config.get("memory"), folder.name)
    return Policy(name, resolve_model(str(folder / "model")), folder, config)
