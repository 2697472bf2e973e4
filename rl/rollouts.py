"""TRL's GRPO trainer as this project uses it: prompts that are tokens, and texts that end as the engine's do.

A completion ends where `cot.utils.engine` ends a text, so that what is rewarded, what is counted as cut off
and what is evaluated are one thing: at any of the model's ends of a turn, and, of a model without a chat
template, at the stop text. Nothing else of the checkpoint's generation settings is obeyed.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from trl import GRPOConfig, GRPOTrainer

from cot.utils.errors import UserError
from cot.utils.models import end_token_ids
from cot.utils.sampling import own_settings
from cot.utils.thinking import NO_BLOCK, Reasoning, StopWatch, split_completion


def make_generation_neutral(model, tokenizer) -> dict:
    """Leaves of the checkpoint's generation settings only its ends, and adds the template's end of a turn.

    `generate` merges them into every call: a ban of repeated n-grams or a suppressed token would reach the
    rollouts, but neither the engine nor the loss. A temperature without sampling could not even be saved.

    Returns:
        What was set aside, by name.

    Raises:
        UserError: nothing ends a text of this model.
    """
    ends = sorted(end_token_ids(model, tokenizer))
    if not ends:
        raise UserError(
            f"--model_name {model.name_or_path}: neither its tokenizer nor its generation_config.json names"
            " a token that ends a text; set eos_token_id there"
        )
    own = own_settings(model.generation_config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    return own


def prepare_vllm(config: GRPOConfig, ends: Sequence[int], stop: Sequence[str], length: int) -> None:
    """Tells vLLM where a completion ends and how long a row may be; what `--grpo` says wins.

    Args:
        length: tokens of the longest prompt and completion together; by itself vLLM makes room for the
            model's whole context.
    """
    if config.use_vllm:
        given: Any = config.generation_kwargs or {}
        config.generation_kwargs = {"stop_token_ids": list(ends), "stop": list(stop), **given}
        config.vllm_max_model_length = config.vllm_max_model_length or length


class StopText(StoppingCriteria):
    """Ends a row of a batch when its newest token completes a stop text outside the reasoning."""

    def __init__(self, tokenizer, stop: Sequence[str], reasoning: Reasoning = NO_BLOCK) -> None:
        self._tokenizer, self._stop, self._reasoning = tokenizer, stop, reasoning
        self._watches: list[StopWatch] = []
        self._seen = 0  # tokens of a row, the prompt included

    def __call__(self, input_ids, scores, **_):
        """Which rows are done, (B,); `input_ids` is (B, T), the prompt included."""
        if not self._watches:  # first asked after the first new token
            self._seen = input_ids.shape[1] - 1
            self._watches = [StopWatch(self._tokenizer, self._stop, self._reasoning) for _ in input_ids]
        newest = input_ids[:, self._seen :].tolist()
        self._seen = input_ids.shape[1]
        rows = zip(self._watches, newest, strict=True)
        done = [any([watch.add(token) for token in tokens]) for watch, tokens in rows]
        return torch.tensor(done, device=input_ids.device)


class StageClock:
    """Seconds that a step has spent in each of its stages, and what it has generated.

    On a GPU a stage ends when its work is done, not when it is queued.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.new_tokens = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = self._now()
        try:
            yield
        finally:
            self._seconds[stage] += self._now() - start

    def take(self) -> dict[str, float]:
        """`<stage>_s` by stage and `tokens_per_second` since the last call, of what there was."""
        taken = {f"{stage}_s": seconds for stage, seconds in self._seconds.items()}
        if "generate" in self._seconds:
            taken["tokens_per_second"] = self.new_tokens / self._seconds["generate"]
        self._seconds.clear()
        self.new_tokens = 0
        return taken

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()


class MemoryTrainer(GRPOTrainer):
    """GRPO on the data set's own token ids.

    TRL would encode a prompt's text anew, and a `<|im_end|>` that a question spells would become the control
    token; a chat template with a start token would also get it twice.

    Where a stop text ends a completion, its tokens up to that text are what the policy has drawn, and are
    trained. TRL knows only tokens as ends, so one is put behind them. It was not drawn and is masked: paying
    for it would be no gradient of the policy. The reward sees the text before the stop text.

    Args:
        train_dataset: rows of `rl.moments.build_rows`.
        reasoning: the block in which the model thinks before it answers; no stop text holds in it.
    """

    def __init__(self, *, train_dataset: Dataset, reasoning: Reasoning = NO_BLOCK, **kwargs) -> None:
        ids = zip(train_dataset["prompt"], train_dataset["prompt_ids"], strict=True)
        self._ids_of_prompt = dict(ids)
        self._stop, self._reasoning = tuple(train_dataset[0]["stop"]), reasoning
        self._clock = StageClock()
        super().__init__(train_dataset=train_dataset.remove_columns(["prompt_ids", "stop"]), **kwargs)
        # TRL adds the tokenizer's end, which may be None
        self.eos_token_ids = [token for token in self.eos_token_ids if token is not None]
        if not self.use_vllm:
            self.generation_config.eos_token_id = self.eos_token_ids

    def create_model_card(self, *_args, **_kwargs) -> None:
        """The run writes a card of its own, with its data and results."""

    def _prepare_inputs(self, generation_batch):
        # TRL counts micro-steps from 0 after a restart, too, and would go on with a batch's second iteration
        # where a new batch is due
        if self._buffered_inputs is None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)

    def _tokenize_prompts(self, prompts: list):
        return [self._ids_of_prompt[prompt] for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        with self._clock.measure("generate"), self._stopping_early():
            completions, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self._clock.new_tokens += sum(map(len, completions))
        self._stopped = [False] * len(completions)
        for row, ids in enumerate(completions):
            drawn = self._tokens_to_stop(ids)
            if drawn is None:
                continue
            self._stopped[row] = True
            completions[row] = [*ids[:drawn], self.eos_token_ids[0]]
            if logprobs is not None:
                logprobs[row] = [*logprobs[row][:drawn], None]
        return completions, logprobs

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        with self._clock.measure("logprobs"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds to a step's metrics what its stages took."""
        super().log(logs | self._clock.take() if "loss" in logs else logs, *args, **kwargs)

    def _generate(self, prompts: list):
        prompt_ids, completion_ids, mask, _, *rest = super()._generate(prompts)
        if self._stop:
            rows = zip(completion_ids, self._stopped, strict=True)
            mask = [[1] * (len(ids) - stopped) + [0] * stopped for ids, stopped in rows]
        return prompt_ids, completion_ids, mask, list(map(self._text, completion_ids)), *rest

    @contextmanager
    def _stopping_early(self) -> Iterator[None]:
        """Lets `generate` end a row at a stop text, to save time; TRL passes no such argument on."""
        if not self._stop or self.use_vllm:
            yield
            return
        model = self.accelerator.unwrap_model(self.model_wrapped)
        criteria = StoppingCriteriaList([StopText(self._tokenizer, self._stop, self._reasoning)])
        model.generate = partial(model.generate, stopping_criteria=criteria)
        try:
            yield
        finally:
            del model.generate

    def _tokens_to_stop(self, ids: Sequence[int]) -> int | None:
        """How many tokens complete a stop text; None where there is none."""
        split = split_completion(self._tokenizer, ids, self._reasoning)
        if split.cut_off or not any(stop in split.text for stop in self._stop):
            return None
        start = split.thinking_tokens or 0

        def stops(count: int) -> bool:
            text = self._tokenizer.decode(ids[start:count], skip_special_tokens=True)
            return any(stop in text for stop in self._stop)

        return bisect_left(range(len(ids)), True, key=stops)

    def _text(self, ids: Sequence[int]) -> str:
        """A completion as the engine reads it: without its end, which need not be a special token.

        Its reasoning stands before it with its marks, special or not, for `RewardTable` to take apart.
        """
        ids = ids[:-1] if ids[-1] in self.eos_token_ids else ids
        return split_completion(self._tokenizer, ids, self._reasoning, self._stop).whole(self._reasoning)
