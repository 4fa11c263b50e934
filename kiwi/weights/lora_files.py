"""LoRA files of other programs: their spellings are read as one, and ours is written in those of ComfyUI and diffusers.

    ComfyUI, DiffSynth   diffusion_model.blocks.0.self_attn.q.lora_A.weight; pipe.dit.blocks.0....lora_A.default.weight
    musubi, kohya        lora_unet_blocks_0_self_attn_q.lora_down.weight, with one .alpha for each layer
    diffusers, old       transformer.blocks.0.attn1.to_q.lora_A.weight; ....lora.down.weight, ...to_q_lora.down.weight
    peft                 base_model.model.blocks.0.self_attn.q.lora_A.weight, with adapter_config.json beside the file

All of them compute W + alpha / rank B A. Here B is multiplied by alpha / rank, so that the factor is 1 from then on.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from kiwi.errors import CheckpointError
from kiwi.reading import parse_json
from kiwi.weights.adapters import LORA_A, LORA_B, list_adapted_layers
from kiwi.weights.files import State, list_weight_files, read_json, read_metadata
from kiwi.weights.names import dit_to_diffusers

_HALF = re.compile(
    r"(?P<layer>.+?)(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<half>A|B|down|up)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
)
_ALPHA = re.compile(r"(?P<layer>.+)\.(?:lora_)?alpha")
_UNSUPPORTED = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector)\b",
    "LoKr": r"\.lokr_\w+$",
    "LoHa": r"\.hada_\w+$",
    "OFT": r"\.oft_\w+",
    "LoCon with a middle matrix": r"\.lora_mid\b",
    "biases of LoRA": r"\.lora_(B|up)(\.\w+)?\.bias$",
    "LoRA of embeddings": r"\.lora_embedding_[AB]\b",
    "differences of weights (.diff)": r"\.diff(_w)?$",
    "differences of biases (.diff_b)": r"\.diff_b$",
    "replaced weights (.set_weight)": r"\.set_weight$",
    "LoRA of a text encoder": r"^(lora_te\d?_|text_encoder(_\d)?\.).*(lora|alpha)",
    "LoRA of a second transformer (transformer_2)": r"^transformer_2\..*(lora|alpha)",
}  # fmt: skip
_PREFIX = re.compile(r"((base_model|model|module|diffusion_model|transformer|unet|net)\.)+")
_UNDERSCORE_PREFIX = re.compile(r"(lora_unet|lora_transformer|lora_dit|lycoris)_")


def is_lora_tensor(name: str) -> bool:
    """Whether a tensor of this name belongs to a LoRA or one of its kin, in any program's spelling."""
    return bool(_HALF.fullmatch(name)) or any(re.search(pattern, name) for pattern in _UNSUPPORTED.values())


def describe_lora(names: Iterable[str]) -> str:
    """Describe the LoRA tensors among names for a message, such as "16 LoRA tensors (X, ...)"; "" without any."""
    found = sorted(filter(is_lora_tensor, names))
    return f"{len(found)} LoRA tensors ({found[0]}, ...)" if found else ""


class LoraScale(NamedTuple):
    """What a file's metadata or the adapter_config.json beside it say about alpha."""

    alpha: float | None = None
    ranks_root: bool = False
    """Whether the factor is alpha / sqrt(rank) (rank-stabilised LoRA)."""
    patterns: Mapping[str, float] = {}
    """Layers, by regular expression of the end of their names, with an alpha of their own."""
    source: str = ""

    def alpha_of(self, layer: str) -> float | None:
        """Return the alpha of a layer, or None if nothing is said about it."""
        return next((a for p, a in self.patterns.items() if layer == p or layer.endswith(f".{p}")), self.alpha)


def read_lora_scale(path: Path | str) -> LoraScale:
    """Read alpha from the metadata of a LoRA file (kohya, diffusers), or from the adapter_config.json of peft.

    Raises:
        CheckpointError: alpha is not a finite number.
    """
    files = list_weight_files(path)
    metadata = read_metadata(files[0]) if len(files) == 1 else {}
    config_file = files[0].parent / "adapter_config.json"
    if "lora_adapter_metadata" in metadata:
        config, source = _parse_json(metadata["lora_adapter_metadata"]), "the file's metadata"
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    elif config_file.is_file() and files[0].stem.startswith("adapter_model"):
        config, source = read_json(config_file), config_file.name
    else:
        keys = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")
        alpha = next((metadata[key] for key in keys if metadata.get(key, "None") != "None"), None)
        config, source = {"lora_alpha": alpha}, "the file's metadata"
    patterns = config.get("alpha_pattern") or {}
    return LoraScale(
        None if config.get("lora_alpha") is None else _to_alpha(config["lora_alpha"], source),
        bool(config.get("use_rslora")),
        {str(k): _to_alpha(v, source) for k, v in patterns.items()} if isinstance(patterns, dict) else {},
        source,
    )


def standardise_lora(state: Mapping[str, Tensor], scale: LoraScale) -> tuple[State, str]:
    """Rename the LoRA tensors of any program to `X.lora_A.default.weight` and `X.lora_B.default.weight`.

    Prefixes such as `diffusion_model.` are dropped; the rest of X is kept (see `resolve_layers`). B is multiplied by
    alpha / rank in float32. Other tensors are returned unchanged.

    Returns:
        The tensors, and what was done with alpha for the report; empty without adapters.

    Raises:
        CheckpointError: there are adapters of an unsupported kind or with two names for a layer, or alpha is invalid.
    """
    _require_plain_lora(state)
    if not any(map(is_lora_tensor, state)):
        return dict(state), ""
    standard: State = {}
    alphas: dict[str, float] = {}
    origins: dict[str, str] = {}
    for name, tensor in state.items():
        if match := _HALF.fullmatch(name):
            new = _standard_layer(match["layer"]) + (LORA_A if match["half"] in ("A", "down") else LORA_B)
            tensor = _squeeze_pointwise(tensor)
        elif match := _ALPHA.fullmatch(name):
            alphas[_standard_layer(match["layer"])] = _to_alpha(tensor.item() if tensor.numel() == 1 else tensor, name)
            continue
        else:
            new = name
        if new in standard:
            got = f"{origins[new]} and {name}"
            raise CheckpointError("a layer has two adapters", code="invalid-adapter", got=got, expected="one")
        standard[new], origins[new] = tensor, name
    return _apply_alpha(standard, alphas, scale)


def _require_plain_lora(state: Mapping[str, Tensor]) -> None:
    """Raise an error that names every kind of adapter in a file that kiwi does not support."""
    found = {
        kind: names for kind, pattern in _UNSUPPORTED.items() if (names := [n for n in state if re.search(pattern, n)])
    }
    convolutions = [n for n, t in state.items() if _HALF.fullmatch(n) and math.prod(t.shape[2:]) != 1]
    found |= {"LoRA of convolutions": convolutions} if convolutions else {}
    if found:
        raise CheckpointError(
            "the file has adapters of a kind that kiwi does not support",
            code="unsupported-adapters",
            got="; ".join(f"{kind}: {len(names)} tensors, such as {names[0]}" for kind, names in found.items()),
            expected="LoRA of the transformer's linear layers: two matrices for each, and optionally alpha",
            fix="merge them into the base model with the program that made them, and convert the result",
        )


def _standard_layer(layer: str) -> str:
    return layer[match.end() :] if (match := _PREFIX.match(layer)) else layer


def _squeeze_pointwise(tensor: Tensor) -> Tensor:
    """Return the matrix of a linear layer that was saved as a convolution with a kernel of one."""
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _to_alpha(value: Any, source: str) -> float:
    try:
        alpha = float(value)
    except (TypeError, ValueError, RuntimeError):
        alpha = math.nan
    if not math.isfinite(alpha):
        problem = f"alpha of an adapter, from {source}, is invalid"
        raise CheckpointError(problem, code="invalid-adapter", got=str(value)[:80], expected="a finite number")
    return alpha


def _parse_json(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(
            "the metadata 'lora_adapter_metadata' of the file is invalid",
            code="invalid-metadata",
            got=text[:80],
            expected="a JSON object",
        )
    return content


def _apply_alpha(state: State, alphas: Mapping[str, float], scale: LoraScale) -> tuple[State, str]:
    layers = [name.removesuffix(LORA_A) for name in state if name.endswith(LORA_A)]
    if orphans := sorted(alphas.keys() - set(layers)):
        problem = f"there is an alpha for {orphans[0]}, but no adapter"
        raise CheckpointError(problem, code="invalid-adapter", expected="lora_down and lora_up, or lora_A and lora_B")
    factors = set()
    for layer in layers:
        alpha = alphas.get(layer, scale.alpha_of(layer))
        a, b = state[layer + LORA_A], state.get(layer + LORA_B)
        if b is None or a.ndim != 2 or alpha is None:
            factors.add(1.0)
            continue
        rank = max(1, a.shape[0])
        factor = alpha / (math.sqrt(rank) if scale.ranks_root else rank)
        factors.add(factor)
        if factor != 1:
            state[layer + LORA_B] = b.float() * factor
    if not layers:
        return state, ""
    listed = ", ".join(f"{factor:g}" for factor in sorted(factors)[:4])
    recorded = f"from {scale.source}" if scale.alpha is not None or scale.patterns else "as the file has no alpha"
    origin = "from the alphas in the file" if alphas else recorded
    return state, f"factor alpha / rank {listed}, {origin}"


def resolve_layers(adapters: Mapping[str, Tensor], weights: Mapping[str, Tensor], part: str = "DiT") -> State:
    """Rename adapters, whose layers have any program's name, to the names of a DiT's layers in `weights`.

    Names of diffusers (`blocks.0.attn1.to_q`), and names in which underscores replace dots (`lora_unet_...`), are
    looked up among the names of the layers.

    Raises:
        CheckpointError: the DiT has no such layers; the message lists them.
    """
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    known = {layer: layer for layer in layers}
    known |= {dit_to_diffusers(f"{layer}.weight").removesuffix(".weight"): layer for layer in layers}
    flat = {name.replace(".", "_"): layer for name, layer in known.items()}
    resolved: State = {}
    unknown: list[str] = []
    for layer in list_adapted_layers(adapters):
        name = layer.replace(".processor.", ".")
        match = _UNDERSCORE_PREFIX.match(name)
        flat_name = name[match.end() if match else 0 :].replace(".", "_")
        real = known.get(name) or flat.get(flat_name) or flat.get(f"{flat_name}_0")  # to_out is a list in diffusers
        if real is None:
            unknown.append(layer)
        elif real + LORA_A in resolved:
            got = f"{layer} and another name of {real}"
            raise CheckpointError("a layer has two adapters", code="invalid-adapter", got=got, expected="one")
        else:
            resolved |= {real + half: adapters[layer + half] for half in (LORA_A, LORA_B)}
    if unknown:
        raise CheckpointError(
            f"the file has adapters for {len(unknown)} layers that the {part} does not have",
            code="mismatched-adapter",
            got=", ".join(unknown[:5]),
            expected=f"layers such as {', '.join(layer for layer in layers if 'attn.q' in layer)[:60]}, as Wan, "
            "diffusers or musubi name them",
            fix="use the adapters with the base model that they were trained for",
        )
    return resolved


def write_names(adapters: Mapping[str, Tensor], style: str) -> State:
    """Rename a DiT's adapters (names without `dit.`) to those of ComfyUI ("lora-comfyui") or diffusers."""
    halves = {LORA_A: ".lora_A.weight", LORA_B: ".lora_B.weight"}
    renamed: State = {}
    for layer in list_adapted_layers(adapters):
        if style == "lora-comfyui":
            new = f"diffusion_model.{layer}"
        else:
            new = f"transformer.{dit_to_diffusers(f'{layer}.weight').removesuffix('.weight')}"
        renamed |= {new + suffix: adapters[layer + half] for half, suffix in halves.items()}
    return renamed
