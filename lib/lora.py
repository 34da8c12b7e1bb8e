"""LoRA: thin matrices beside frozen weights are all that is trained (arXiv 2106.09685).

A linear layer computes W x + (ALPHA / R) B A x. W, (out, in), stays as it is; A, (R, in), and B,
(out, R), which begins as zeros, learn. So gradients and moments are 1 to 3 hundredths of the
model's, and the frozen weights need no fp32: they take 2 bytes a parameter instead of 16.

Samplers get plain weights, W + (ALPHA / R) B A under W's name. A checkpoint has the adapter alone
in the format of the library peft, which also knows which model it belongs to.

Test: `pytest tests/test_lora.py`. Read next: checkpoint.py.
"""

import json
import os
import pathlib
import sys
import zlib

import torch
from safetensors import SafetensorError

from lib.errors import UserError

ALPHA = 32  # with it the best learning rate hardly depends on R (Schulman 2025)
NAME = "default"  # the adapter's
CONFIG_FILE = "adapter_config.json"
GOLDEN_RATIO = 0x9E3779B1  # times 1 << 32, without its whole part


def add_adapter(policy, rank: int) -> None:
    """Freeze a policy's model, and add an adapter to every linear layer of its decoder.

    Raises UserError.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError(f"--lora: needs the library peft ({error}); pip install peft") from None
    model = policy.model
    of_decoder = set(model.get_decoder().modules())
    model.add_adapter(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules="all-linear"), NAME)
    is_local = os.path.exists(policy.path)
    base = os.path.abspath(policy.path) if is_local else policy.path
    model.peft_config[NAME].base_model_name_or_path = base
    model.requires_grad_(False)
    for module in adapted_layers(model).values():
        if module.base_layer in of_decoder:
            for parameter in (*module.lora_A.parameters(), *module.lora_B.parameters()):
                parameter.data = parameter.data.to(torch.promote_types(policy.dtype, torch.float32))
                parameter.requires_grad_(True)


def load_adapter(model, folder: pathlib.Path) -> None:
    """Take the adapter's weights from a checkpoint. Raises UserError."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    try:
        weights = load_peft_weights(str(folder), device="cpu")
        missing = set_peft_model_state_dict(model, weights, NAME).missing_keys
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(f"{folder}: the adapter can't be loaded ({problem})") from None
    if any(".lora_" in name for name in missing):
        raise UserError(f"{folder}: the adapter can't be loaded (parts are missing)")


def adapted_layers(model) -> dict[str, torch.nn.Module]:
    """Module name -> layer with an adapter."""
    if "peft" not in sys.modules:  # it takes a second to import
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@torch.no_grad()
def plain_weights(model, dtype: torch.dtype | None = None):
    """(name, tensor) of a model as if it had never had an adapter, one after another.

    dtype: of the weights that have one.
    """
    layers = adapted_layers(model)
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None:
            tensor = rounded(tensor + layer.get_delta_weight(NAME), dtype, name)
        yield name.replace(".base_layer.", "."), tensor


def rounded(tensor: torch.Tensor, dtype: torch.dtype | None, name: str) -> torch.Tensor:
    """A sum of weight and delta in this dtype; name: gives the rounding another beginning.

    The frozen weight is exact in bf16. If the sum was rounded to the nearest, a delta below half of
    a bf16's last place would be lost, which most are in the first steps: samplers would hardly see
    what was trained. So of sums that lie a share s of the way to the next bf16, a share s becomes
    that one. Which ones does not change: weights don't jump to and fro between updates.
    """
    if dtype != torch.bfloat16:
        return tensor if dtype is None else tensor.to(dtype)
    number = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    # Multiples of the golden ratio, but for their whole part, are spread evenly from 0 to 1.
    spread = ((number * GOLDEN_RATIO + zlib.crc32(name.encode())) % (1 << 32)) >> 16
    # The upper half of an fp32's bits is a bf16: what is added to the lower half may carry into it.
    bits = (tensor.float().view(torch.int32) + spread.int()) & -(1 << 16)
    return bits.view(torch.float32).bfloat16()


def base_of(path: str) -> str:
    """The model that an adapter's folder belongs to; any other path itself. Raises UserError."""
    file = pathlib.Path(path) / CONFIG_FILE
    if not file.is_file():
        return path
    try:
        return json.loads(file.read_text())["base_model_name_or_path"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file}: does not say which model the adapter belongs to") from None


def refusal(path: str) -> str:
    """Why an adapter can't be added to the model of this folder."""
    return (
        f"--lora, --model {path}: is an adapter itself; merge it into its model first "
        f"(python sft.py --model {path} --out DIR)"
    )


def merge(model, folder: str) -> torch.nn.Module:
    """A model with the adapter of `folder` in its weights, as samplers get them in training."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, folder)
    config = adapted.peft_config[NAME]
    is_plain = not (config.use_dora or config.lora_bias or config.modules_to_save)
    if model.dtype != torch.bfloat16 or not is_plain:
        return adapted.merge_and_unload()
    merged = dict(plain_weights(adapted.base_model.model, model.dtype))
    model = adapted.unload()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(merged[name])
    return model
