"""The folder of a training run: found again when unfinished, locked, and recorded in `run.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

from cot.utils.cli import DATA_DIR, writable_dir
from cot.utils.errors import UserError
from cot.utils.model_source import BUNDLED, BUNDLED_FILE, ModelSource
from cot.utils.results import environment, family, timestamp, write_json
from rl.checkpoints import find_checkpoint, keep_up_to, refuse_changes, step_of


def start_processes():
    """This process among those of the run: accelerate's state, alone unless launched with others."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def weights_are_sharded() -> bool:
    """Whether FSDP or DeepSpeed, chosen by the launcher, spreads the weights over the processes."""
    from accelerate.utils import parse_flag_from_env

    return any(map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")))


@dataclass
class RunFolder:
    """One run's folder.

    Attributes:
        checkpoint: to continue from; None at the start.
    """

    path: Path
    checkpoint: Path | None
    processes: object
    lock: object = None

    def begin(self, config: dict, device: str) -> dict:
        """Writes `run.json`, cuts the metrics at the checkpoint's step; returns the record."""
        record = {"status": "running", "started": timestamp(), "config": config}
        record["environment"] = environment(device)
        if self.processes.is_main_process:
            write_json(self.path / "run.json", record)
            step = step_of(self.checkpoint) if self.checkpoint else -1
            for name in ("metrics.jsonl", "completions.jsonl"):
                keep_up_to(self.path / name, step)
            if self.checkpoint:
                print(f"continues from {self.checkpoint.name}", flush=True)
        self.processes.wait_for_everyone()
        return record

    def close(self, record: dict, status: str) -> None:
        """Writes how the run ended."""
        if self.processes.is_main_process:
            write_json(self.path / "run.json", record | {"status": status, "finished": timestamp()})


def open_run(
    output_dir: Path | None, source: ModelSource, identity: dict, resume: str, processes
) -> RunFolder:
    """The named folder; else the unfinished run of the very same settings; else a new one.

    Raises:
        UserError: a finished run, another process at it, or a checkpoint made with other settings.
    """
    from accelerate.utils import broadcast_object_list

    found: list = [None, None, None]
    lock = None
    if processes.is_main_process:
        try:
            path = output_dir or _unnamed(source, identity, resume)
            writable_dir(path)
            lock = _lock(path)
            found[:2] = path, _checkpoint(path, identity, resume)
        except UserError as error:
            found[2] = str(error)
    if processes.num_processes > 1:
        broadcast_object_list(found)
    path, checkpoint, problem = found
    if problem:
        raise UserError(problem)
    return RunFolder(path, checkpoint, processes, lock)


def _checkpoint(path: Path, identity: dict, resume: str) -> Path | None:
    run = read_run(path)
    if run.get("status") == "success" and resume != "never":
        raise UserError(f"--output_dir {path}: this run is finished; name another folder")
    checkpoint = find_checkpoint(path, resume)
    if checkpoint is not None:
        refuse_changes(read_run(checkpoint.parent).get("config", {}).get("identity", {}), identity)
    return checkpoint


def _unnamed(source: ModelSource, identity: dict, resume: str) -> Path:
    name = Path(BUNDLED_FILE).stem if source.kind == BUNDLED else source.name
    root = DATA_DIR / family(name)
    if resume == "auto":
        for file in sorted(root.glob("rl_*/run.json"), reverse=True):
            run = read_run(file.parent)
            if run.get("status") != "success" and run.get("config", {}).get("identity") == identity:
                return file.parent
    return root / f"rl_{timestamp()}"


def read_run(path: Path) -> dict:
    """A folder's `run.json`; empty where there is none that can be read."""
    try:
        content = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lock(path: Path):
    from filelock import FileLock, Timeout

    lock = FileLock(path / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--output_dir {path}: another process trains there; wait for it or stop it"
        ) from error
    return lock
