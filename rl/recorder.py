"""What is done between the steps of a training: metrics, held-out evaluation, checkpoints, and its end.

The processes of a run have to agree on what they do next, so they vote.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from cot.utils.errors import share_signal, signal_received
from cot.utils.files import append_json_lines, read_json_lines
from rl.alarms import Alarms
from rl.rewards import RewardTable
from rl.runs import mark_complete


def largest(value: int, device: torch.device | str) -> int:
    """The largest value that any process of the run has; every process asks at the same point."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def asked_to_end(device: torch.device | str) -> bool:
    """Whether a signal asked any process of the run to end; from then on it counts as everyone's."""
    signum = largest(signal_received(), device)
    if signum:
        share_signal(signum)
    return bool(signum)


class Recorder(TrainerCallback):
    """Writes `metrics.jsonl`, asks for checkpoints and for the end, and marks checkpoints complete.

    Attributes:
        stopped: why an alarm ended the run; None where none did.

    Args:
        metrics: the file, appended to by the main process.
        alarms: what is told every step's metrics, those of an earlier attempt included.
        evaluate: from the model to its held-out scores, flat; None where none are asked for.
        eval_every: steps between two evaluations.
        save_minutes: time between two checkpoints, beside those by steps.
    """

    def __init__(
        self,
        *,
        metrics: Path,
        table: RewardTable,
        alarms: Alarms,
        evaluate: Callable[[torch.nn.Module], dict] | None,
        eval_every: int,
        save_minutes: float,
        max_steps: int,
    ) -> None:
        self._metrics, self._table, self._alarms = metrics, table, alarms
        self._evaluate, self._eval_every = evaluate, eval_every
        self._save_s, self._max_steps = 60 * save_minutes, max_steps
        self._saved = self._step_started = time.monotonic()
        self._reward_s, self._step_s = 0.0, 0.0
        self._seen_from_start = True
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, model=None, **_):
        self._saved = time.monotonic()
        if state.global_step == 0:
            self._log_evaluation(state, model)
            return
        # an earlier attempt's steps count, or a run that is interrupted often enough would never be stopped
        self._seen_from_start = self._metrics.exists()
        if self._seen_from_start:
            for _, line in read_json_lines(self._metrics):
                if "loss" in line:
                    self._alarms.see(line)

    def on_step_begin(self, args, state, control, **_):
        self._step_started, self._reward_s = time.monotonic(), self._table.seconds

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        broken = not all(gradient.isfinite().all() for gradient in gradients)
        if largest(broken, model.device):  # of spread weights a process sees its own parts alone
            for weight in model.parameters():
                weight.grad = None  # one bad step must not make every later text impossible to sample

    def on_step_end(self, args, state, control, model=None, **_):
        self._step_s = time.monotonic() - self._step_started
        if state.global_step % self._eval_every == 0 or state.global_step == self._max_steps:
            self._log_evaluation(state, model)
        # all processes save, and stop, at the same step
        due = bool(largest(time.monotonic() - self._saved > self._save_s, model.device))
        signalled = asked_to_end(model.device)
        control.should_save = control.should_save or due or signalled
        control.should_training_stop = control.should_training_stop or signalled

    def on_save(self, args, state, control, **_):
        self._saved = time.monotonic()
        PartialState().wait_for_everyone()  # each writes a part of the checkpoint
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_log(self, args, state, control, logs=None, model=None, **_):
        ended = "train_runtime" in logs  # the trainer's last words
        if "loss" in logs:
            self._log_step(state, logs)
        elif not ended:
            return

        reason = None if ended else self._alarms.stop()
        if ended and self._seen_from_start:
            reason = self._alarms.verdict()
        if largest(reason is not None, model.device) and self.stopped is None:
            self.stopped = reason or "another process gave an alarm"
            control.should_training_stop = control.should_save = True

    def _log_step(self, state, logs: dict) -> None:
        """Writes, prints and watches a step; one on completions that were used before has no rewards."""
        reward_s = self._table.seconds - self._reward_s
        measured = reward_s + logs.get("generate_s", 0.0) + logs.get("logprobs_s", 0.0)
        extra = {
            "step_s": self._step_s,
            "reward_s": reward_s,
            "backward_s": max(0.0, self._step_s - measured),
            "reward_share": reward_s / self._step_s if self._step_s else None,
            "reward_errors": self._table.errors,
        }
        record = {"step": state.global_step, **logs, **extra}
        self._write(state, record)
        self._alarms.see(record, self._table.completion_ids)
        warning = self._alarms.warning()
        if not state.is_world_process_zero:
            return

        shown = {"reward": "reward", "correct": "rewards/correct/mean", "fidelity": "rewards/fidelity/mean"}
        values = [f"{name} {logs[key]:.3f}" for name, key in shown.items() if logs.get(key) is not None]
        values.append(f"{self._step_s:.1f} s")
        print(f"step {state.global_step}/{self._max_steps}: {', '.join(values)}", flush=True)
        if warning:
            print(f"warning: {warning}", flush=True)

    def _log_evaluation(self, state, model) -> None:
        if self._evaluate is None:
            return
        scores = {f"eval/{name}": value for name, value in self._evaluate(model).items()}
        if state.is_world_process_zero:
            self._write(state, {"step": state.global_step, **scores})
            shown = ", ".join(f"{name} {value}" for name, value in scores.items())
            print(f"step {state.global_step}: {shown}", flush=True)

    def _write(self, state, record: dict) -> None:
        if state.is_world_process_zero:
            append_json_lines(self._metrics, [record])
