"""PEFT adapters, merged into their base: every weight of the adapter must find its place.

PEFT warns where an adapter's weights match only a part of the base, and says nothing where they match none of
it: what answers then is the base under the adapter's name. Here both are errors.
"""

import warnings
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.model_names import ModelSource
from cot.utils.weights import refuse_misfits

PREFIX = "base_model.model."  # of every name in an adapter's file


def merge_adapter(source: ModelSource, model, device):
    """The base with the adapter's change added to its weights.

    A vocabulary that the adapter was trained with, and that its file holds, replaces the base's.

    Args:
        source: of kind `adapter`.
        model: its base, changed in place.
        device: of the base.

    Raises:
        UserError: names, rank or other shapes do not fit the base, or the adapter is of a kind that cannot be
            merged.
    """
    from peft import PeftConfig, PeftModel

    stored = _read_shapes(source.path / "adapter_model.safetensors")
    config = PeftConfig.from_pretrained(str(source.path))
    kind = config.peft_type.value
    unmergeable = f"--model_name {source.name}: an adapter of kind {kind} cannot be merged into a base"
    if config.is_prompt_learning:
        raise UserError(unmergeable)
    _fit_vocabulary(model, stored)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of misfits is an error here
        adapted = PeftModel.from_pretrained(
            model, source.path, torch_device=str(device), ignore_mismatched_sizes=True
        )
        _check(source, adapted, stored)
        _untie_adapted_table(adapted.get_base_model())
        try:
            return adapted.merge_and_unload()  # type: ignore[operator]  # the tuner's, found by __getattr__
        except (AttributeError, NotImplementedError) as error:
            raise UserError(unmergeable) from error


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _check(source: ModelSource, adapted, stored: dict[str, tuple[int, ...]]) -> None:
    """Compares what the file holds with what PEFT made of the config and the base."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # beside its own weights a file may hold the tables of the base, as after a change of the vocabulary
    base = {name: tuple(tensor.shape) for name, tensor in adapted.state_dict().items()}
    tables = {name: base[name] for name in stored if name in base and name not in wanted}
    taken = wanted | tables
    refuse_misfits(
        source.name,
        f"its base {source.base.name}",
        missing=wanted.keys() - stored.keys(),
        unknown=stored.keys() - taken.keys(),
        misshapen={
            name: (shape, taken[name]) for name, shape in stored.items() if taken.get(name, shape) != shape
        },
    )


def _fit_vocabulary(model, stored: dict[str, tuple[int, ...]]) -> None:
    """Gives the base as many rows as the adapter's own table has, which is loaded into them."""
    table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    names = (f"{PREFIX}{table}.weight", f"{PREFIX}{table}.base_layer.weight")
    rows = next((stored[name][0] for name in names if name in stored), None)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _untie_adapted_table(model) -> None:
    """Gives the two tables weights of their own where they share them and one is adapted.

    Otherwise the change of one would be merged into the other, too.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    if tables[1] is None or not any(isinstance(table, BaseTunerLayer) for table in tables):
        return
    first, second = (getattr(table, "base_layer", table) for table in tables)
    if getattr(first, "weight", None) is getattr(second, "weight", None):
        second.weight = torch.nn.Parameter(second.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False
