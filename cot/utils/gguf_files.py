"""What a GGUF file says beside its weights, and that all of its weights are used.

transformers skips tensors that it does not know and ignores two fields: the factors by which Llama 3.1 scales
its rotary frequencies, and whether a text begins with the begin-of-text token. Here the first two are errors,
and the third is obeyed.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpy import ndarray

from cot.utils.errors import UserError
from cot.utils.gguf_header import GgufHeader, read_float32, read_header
from cot.utils.weights import load_checked, refuse_misfits

ROTARY_FACTORS = "rope_freqs.weight"
ADD_BOS = "tokenizer.ggml.add_bos_token"


def load_gguf_tokenizer(name: str, path: Path, options: dict):
    """The tokenizer of a file.

    Args:
        name: of the model.
        options: for `from_pretrained`.

    Raises:
        UserError: the package `gguf` is absent; the file wants a begin-of-text token and names none.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model_name {name}: a GGUF file needs its package: pip install gguf")
    from transformers import AutoTokenizer

    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **options)
    _obey_add_bos(name, read_header(path), tokenizer)
    return tokenizer


def load_gguf(name: str, path: Path, options: dict):
    """The model of a file, its weights unpacked.

    Args:
        name: of the model.
        options: for `from_pretrained`: `dtype`, `device_map` and the like.

    Raises:
        UserError: tensors are missing, would be skipped or have another shape; the file scales rotary
            frequencies.
    """
    from transformers import GgufConfig

    header = read_header(path)
    _refuse_rotary_factors(name, path, header)
    quantization = GgufConfig(dequantize=True)
    with _read_once():
        model = load_checked(
            name, path.parent, gguf_file=path.name, quantization_config=quantization, **options
        )
        _refuse_skipped(name, header, model)
    _refuse_other_shapes(name, model)
    return model


@contextmanager
def _read_once() -> Iterator[None]:
    """Spares most of the time of a load.

    transformers has the package `gguf` parse the whole file for the config and again for the tokens or the
    weights, and make the same map of names for every module.
    """
    import gguf

    class PlainReader(gguf.GGUFReader):
        """Each of a file's many tokens is a slice; those of a plain array take half of the time."""

        @property
        def data(self):
            return self._plain

        @data.setter
        def data(self, mapped):
            self._plain = mapped.view(ndarray)

    reader, make_map = gguf.GGUFReader, gguf.get_tensor_name_map
    vars(gguf).update(GGUFReader=functools.cache(PlainReader), get_tensor_name_map=functools.cache(make_map))
    try:
        yield
    finally:
        vars(gguf).update(GGUFReader=reader, get_tensor_name_map=make_map)


def _refuse_rotary_factors(name: str, path: Path, header: GgufHeader) -> None:
    """Factors of 1 change nothing; others do, and transformers does not read them."""
    if ROTARY_FACTORS in header.shapes and set(read_float32(path, header, ROTARY_FACTORS) or ()) != {1.0}:
        raise UserError(
            f"--model_name {name}: it scales rotary frequencies ({ROTARY_FACTORS}, as Llama 3.1 does),"
            " which transformers does not read from a GGUF file; use the model's safetensors"
        )


def _obey_add_bos(name: str, header: GgufHeader, tokenizer) -> None:
    """Sets whether an encoded text begins with the begin-of-text token, where the file says so."""
    if ADD_BOS not in header.fields:
        return
    wanted = bool(header.fields[ADD_BOS])
    if wanted and tokenizer.bos_token is None:
        raise UserError(f"--model_name {name}: {ADD_BOS} is true, but the file names no such token")
    tokenizer.add_bos_token = wanted


def _refuse_skipped(name: str, header: GgufHeader, model) -> None:
    """Compares the file's tensors with the names that transformers maps to the model's weights."""
    architecture = str(header.fields["general.architecture"])
    if _reports_skipped(architecture):
        return
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    mapped = get_gguf_hf_weights_map(model, processor)
    stacked = {f"{target}.weight" for target in mapped}  # experts, which are mapped without a suffix
    known = {ROTARY_FACTORS, *mapped, *stacked}
    if architecture == "gpt2":
        known.add("output.weight")  # taken on a way of its own
    refuse_misfits(name, type(model).__name__, unknown=header.shapes.keys() - known)


def _refuse_other_shapes(name: str, model) -> None:
    """Compares with a model of the same config: of a GGUF file, any shape is taken."""
    import torch

    with torch.device("meta"):
        planned = type(model)(model.config).state_dict()
    shapes = {
        key: (tuple(tensor.shape), tuple(planned[key].shape)) for key, tensor in model.state_dict().items()
    }
    refuse_misfits(
        name,
        type(model).__name__,
        misshapen={key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
    )


def _reports_skipped(architecture: str) -> bool:
    """Whether transformers loads it on its newer way, which reports what it skips as any checkpoint's."""
    if importlib.util.find_spec("transformers.integrations.gguf") is None:
        return False
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    return is_gguf_arch_supported(architecture)
