"""Generation with vLLM: rows join and leave its batch as they come and go, on one GPU or on several.

Prompts go in as token ids. Every text comes out as token ids with their log-probabilities at temperature 1,
and is taken apart by the same code as a text of transformers. A row's noise has a seed of its own, as rows
that share one draw the same noise. vLLM groups rows as their turn comes: float sums, and with them close
choices of a token, may differ from run to run.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cot.utils.completions import Completion, Draft, Request, sort_out
from cot.utils.engine_choice import VLLM, adapter_rank, limit_context, split_adapter
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.model_names import ModelSource, fetch_model
from cot.utils.models import LOCAL, context_length, describe_model, end_token_ids, unpack_bundled
from cot.utils.processes import guard_children
from cot.utils.weights import check_vocabulary

YIELD_EVERY_S = 1.0  # finished texts wait so long at most for the journal, whose writing takes its time
CPU_CACHE_BYTES = 4 << 30  # of keys and values, where no flag names a share of the memory
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # the last line on standard output is the script's
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # of two cores it would leave one idle
}


def set_environment() -> None:
    """Tells vLLM, before it is imported, what the scripts need of it; what the user has set stays."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


class VllmEngine:
    """Answers requests with vLLM, in a process of its own that ends with this object.

    Args:
        source: the model, on this machine.
        tokenizer: for decoding and for the end tokens.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of the weights, by name.
        max_new_tokens: length at which a text is cut.
        batch_size: rows decoded together at most; None for vLLM's own number.
        max_model_len: positions for a prompt and its answer, where that is less than the model has.
        tensor_parallel_size: GPUs that share the weights.
        gpu_memory_utilization: share of a GPU's memory; on a CPU of the machine's. None for vLLM's own share,
            and on a CPU for 4 GiB of keys and values.

    Raises:
        UserError: vLLM cannot load the model.
    """

    def __init__(
        self,
        source: ModelSource,
        tokenizer,
        device: str,
        dtype: str,
        max_new_tokens: int,
        batch_size: int | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int | None = None,
        gpu_memory_utilization: float | None = None,
    ) -> None:
        self.tokenizer, self.max_new_tokens, self._device = tokenizer, max_new_tokens, device
        base, adapter = split_adapter(source)
        base = fetch_model(base)
        if base.kind == "bundled":
            base = unpack_bundled(base)
        self._skeleton = _build_skeleton(base, dtype)
        check_vocabulary(source.name, self._skeleton, tokenizer)
        self.end_ids = end_token_ids(self._skeleton, tokenizer)
        self.context_length = limit_context(context_length(self._skeleton), max_model_len)

        options: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size or 1}
        if batch_size:
            options["max_num_seqs"] = batch_size
        if self.context_length:
            options["max_model_len"] = self.context_length
        if gpu_memory_utilization:
            options["gpu_memory_utilization"] = gpu_memory_utilization
        if device == "cpu":
            options["enforce_eager"] = True  # compiling takes a minute and needs a C++ compiler
            # the sampler of a CPU cannot take back the noise of a prompt that was computed in parts
            options["enable_chunked_prefill"] = False
            if not gpu_memory_utilization:
                options["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        if adapter:
            rank = adapter_rank(adapter.path)
            options |= {"enable_lora": True, "max_lora_rank": next(r for r in LORA_RANKS if r >= rank)}
        self._load(source.name, str(base.path), adapter, device, options)

    def _load(self, name: str, folder: str, adapter: ModelSource | None, device: str, options: dict) -> None:
        set_environment()
        import vllm
        from vllm.lora.request import LoRARequest

        try:
            with _one_gpu_visible(device):
                llm = vllm.LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    generation_config="vllm",  # not the checkpoint's sampling defaults
                    logprobs_mode="raw_logprobs",  # at temperature 1, whatever the sampling temperature
                    use_tqdm_on_load=sys.stderr.isatty(),
                    **options,
                )
            self._engine, self._lora = llm.llm_engine, None
            self._guard = guard_children()
            if adapter:
                self._lora = LoRARequest("adapter", 1, str(adapter.path))
                self._engine.add_lora(self._lora)
        except (ValueError, RuntimeError, OSError, NotImplementedError, AssertionError) as error:
            raise UserError(
                f"--engine vllm: {name} cannot be loaded: {str(error)[:400]}; its own lines above say more."
                " Where memory is short a smaller --max_model_len helps, else --engine transformers",
                EXIT_UNEXPECTED,
            ) from error
        self.batch_size = self._engine.vllm_config.scheduler_config.max_num_seqs
        self._version = vllm.__version__

    def describe(self, source: ModelSource, _longest: int) -> dict:
        """What a result file records of the model and how it is decoded."""
        import vllm.envs

        engine = {"name": VLLM, "version": self._version, "batch_invariant": vllm.envs.VLLM_BATCH_INVARIANT}
        described = describe_model(source, self._skeleton)
        described |= {"device": self._device, "attn_implementation": VLLM}
        return described | {"engine": engine, "batch_size": self.batch_size}

    def generate(
        self, requests: Sequence[Request], watch: Callable[[int, int], None] | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yields about once a second its finished pairs of (index in `requests`, completion).

        Each index comes exactly once. Prompts that do not fit the context come first, as errors; equal
        requests are generated once.

        Args:
            watch: told after each step how many tokens the oldest row has at most, and how many rows go on.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        refused, sharing = sort_out(requests, self.max_new_tokens, self.context_length)
        if refused:
            yield refused

        waiting, drafts, begun = list(reversed(sharing)), dict[str, Draft](), dict[str, int]()
        finished, step, last_yield = [], 0, time.monotonic()
        try:
            while waiting or drafts:
                while waiting and len(drafts) < 2 * self.batch_size:  # as many again wait inside vLLM
                    first = waiting.pop()
                    drafts[str(first)] = self._begin(str(first), requests[first])
                    begun[str(first)] = step

                step += 1
                for name, completion in self._step(drafts):
                    del drafts[name], begun[name]
                    finished += [(i, completion) for i in sharing[int(name)]]
                if watch:
                    oldest = min(step - next(iter(begun.values()), step), self.max_new_tokens)
                    watch(max(1, oldest), min(len(drafts), self.batch_size))

                if finished and (not drafts or time.monotonic() - last_yield > YIELD_EVERY_S):
                    yield finished
                    finished, last_yield = [], time.monotonic()
        except EngineDeadError as error:
            message = "vLLM has ended; its own lines above say why. The same command continues the run"
            raise UserError(message, EXIT_UNEXPECTED) from error
        finally:
            self._engine.abort_request(list(drafts))

    def _begin(self, name: str, request: Request) -> Draft:
        """Hands a request to vLLM."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            seed=request.seed if request.temperature else None,  # a seeded row leaves the batched sampler
            top_p=request.sampling.top_p,
            top_k=request.sampling.top_k,
            min_p=request.sampling.min_p,
            max_tokens=self.max_new_tokens,
            stop_token_ids=sorted(self.end_ids),
            ignore_eos=True,  # unless it is one of them
            logprobs=0,  # of the chosen token alone
            detokenize=False,
            # a stop text is watched for token by token: vLLM knows none that counts outside a reasoning only
            output_kind=RequestOutputKind.DELTA if request.stop else RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(list(request.prompt_ids))
        self._engine.add_request(name, prompt, params, lora_request=self._lora)
        return Draft(request, self.tokenizer, self.end_ids, self.max_new_tokens)

    def _step(self, drafts: Mapping[str, Draft]) -> list[tuple[str, Completion]]:
        """One step of vLLM; the drafts that have ended, by name, as completions."""
        ended, stopped = [], []
        for output in self._engine.step():
            name, draft, (text,) = output.request_id, drafts.get(output.request_id), output.outputs
            if draft is None:  # stopped a moment ago
                continue
            if output.finished and text.finish_reason not in ("stop", "length"):
                message = f"vLLM ended the text: {text.finish_reason}"
                ended.append((name, Completion(error={"type": "engine", "message": message})))
                continue

            for token, logprobs in zip(text.token_ids, text.logprobs or (), strict=True):
                if draft.status == "running":
                    draft.add(token, logprobs[token].logprob)
            if output.finished or draft.status != "running":
                ended.append((name, draft.complete()))
            if not output.finished and draft.status != "running":
                stopped.append(name)
        if stopped:
            self._engine.abort_request(stopped)
        return ended


def _build_skeleton(base: ModelSource, dtype: str):
    """The model without weights: its class, config, size and end tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(base.path, **LOCAL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    if (base.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base.path)
    return model


@contextlib.contextmanager
def _one_gpu_visible(device: str) -> Iterator[None]:
    """Lets vLLM's processes, which are started here, see `cuda:N` alone where N is not 0."""
    number = int(device.partition(":")[2] or 0)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if number:
        os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[number] if before else str(number)
    try:
        yield
    finally:
        if number and before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        elif number:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
