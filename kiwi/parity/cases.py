"""Functions that compute kiwi's outputs for each golden case, by the names that its file gives them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kiwi.checkpoints.published import from_published_state
from kiwi.flow.schedule import FlowSchedule, add_noise, find_nearest_index, velocity_loss, velocity_target
from kiwi.flow.solvers import EulerSolver
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import Context, join_contexts, mlp
from kiwi.models.dit.attention import compute_rope
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference, NoReference, NoSource, PrependReference
from kiwi.models.kiwi import Conditions, KiwiEdit, PreparedConditions
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.vae.formats import build_network
from kiwi.models.vae.tiling import Tiling
from kiwi.models.vae.wan import NewVae, VideoVae
from kiwi.parity.golden import Case, Compute
from kiwi.parity.mllm_cases import compute_mllm, compute_mllm_preprocess
from kiwi.weights.strict import load_strict


def compute_scheduler(case: Case) -> dict[str, Tensor]:
    """Compute sigmas, loss weights, Euler steps and the training target, with and without bf16 timesteps."""
    inputs, config = case.group("in/"), case.meta["config"]
    schedule = FlowSchedule(shift=config["shift"], num_train_timesteps=config["num_train_timesteps"])
    grids = {
        "inference": schedule.sigmas(config["inference_steps"], sigma_min=config["sigma_min"]),
        "training": schedule.sigmas(config["training_steps"], sigma_min=config["sigma_min"]),
    }
    shift, steps, strength = (config["partial"][key] for key in ("shift", "steps", "denoising_strength"))
    grids["partial"] = FlowSchedule(shift=shift).sigmas(steps, strength=strength)
    out: dict[str, Tensor] = {}
    for name, grid in grids.items():
        out[f"{name}_sigmas"], out[f"{name}_timesteps"] = grid[:-1], schedule.timestep(grid[:-1])
        rounded = out[f"{name}_timesteps"].bfloat16().float()
        index = find_nearest_index(out[f"{name}_timesteps"], rounded)
        out |= {f"{name}_bf16_timesteps": rounded, f"{name}_bf16_index": index, f"{name}_bf16_sigma": grid[index]}
    out["training_weights"] = schedule.loss_weight(out["training_sigmas"])

    def step(timestep: Tensor) -> Tensor:
        index = int(find_nearest_index(out["inference_timesteps"], timestep.reshape(1)))
        return EulerSolver().solve(
            lambda x, sigma: inputs["step_model_output"], inputs["step_sample"], grids["inference"][index : index + 2]
        )

    out["step"], out["step_offgrid"] = step(inputs["step_timestep"]), step(inputs["step_offgrid_timestep"])
    out["step_last"] = step(out["inference_timesteps"][-1])

    def look_up_sigma(timestep: Tensor) -> Tensor:
        return out["training_sigmas"][find_nearest_index(out["training_timesteps"], timestep)]

    x0, noise, prediction = inputs["train_x0"], inputs["train_noise"], inputs["train_prediction"]
    sigma, rounded_sigma = look_up_sigma(inputs["train_timestep"]), look_up_sigma(inputs["train_timestep_bf16_as_f32"])
    out |= {"train_sigma": sigma, "training_weight": schedule.loss_weight(sigma)}
    out |= {"add_noise": add_noise(x0, noise, sigma), "add_noise_bf16_timestep": add_noise(x0, noise, rounded_sigma)}
    out["training_target"] = velocity_target(x0, noise)
    out["training_loss"] = velocity_loss(prediction, out["training_target"]) * out["training_weight"]
    return out


def compute_connectors(case: Case) -> dict[str, Tensor]:
    """Compute the outputs of both connectors and the context that joins them."""
    inputs, config = case.group("in/"), case.meta["config"]
    query, latent = (nn.ModuleDict({"connector": mlp(config["hidden"], config["dit_dim"])}) for _ in range(2))
    modules = nn.ModuleDict({"query": query, "latent": latent})
    load_strict(modules, from_published_state(case.group("weights/")), case.name)
    queries, references = query["connector"](inputs["query_features"]), latent["connector"](inputs["ref_features"])
    context = join_contexts(Context(references, None), Context(queries, None)).tokens_BND
    return {"connetor": queries, "ref_connector": references, "context_ref_mode": context}


_PART_VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"source": NoSource(), "reference": NoReference()},
    "source": {"source": AddSource(), "reference": NoReference()},
    "ref_last": {"source": AddSource(), "reference": AppendReference()},
    "ref_first": {"source": AddSource(), "reference": PrependReference()},
    "ref_only": {"source": NoSource(), "reference": AppendReference()},
}

_DIT_MODES = {
    "a_plain": ("none", "off_grid", ""),
    "b_source": ("source", "on_grid", ""),
    "b2_source_offgrid": ("source", "off_grid", ""),
    "c_source_ref_last": ("ref_last", "on_grid", ""),
    "d_source_ref_first": ("ref_first", "on_grid", ""),
    "c2_ref_last_nosource": ("ref_only", "off_grid", ""),
    "e_ctx2": ("none", "off_grid", "context"),
    "e2_batch2": ("ref_only", "batch2", "all"),
    "e3_batch2_equal_t": ("ref_only", "batch2_equal", "all"),
}
"""Output name -> key in _PART_VARIANTS, timestep, and which inputs are a batch of two (none, the context or all)."""


def compute_dit(case: Case) -> dict[str, Tensor]:
    """Compute the transformer's output in every published mode, its rotary table and the tokens between blocks."""
    recorded = case.group("in/")
    out: dict[str, Tensor] = {}
    models = {name: _build_editor(case, **parts) for name, parts in _PART_VARIANTS.items()}
    for name, (variant, timestep_name, batched) in _DIT_MODES.items():
        model, timestep = models[variant], recorded[f"timestep_{timestep_name}"]
        sigma = recorded["scheduler_sigmas"][find_nearest_index(recorded["scheduler_timesteps"], timestep)]
        context = recorded["context_batch2" if batched else "context"]
        suffix = "_batch2" if batched == "all" else ""
        inputs = {key: recorded.get(key + suffix, recorded[key]) for key in ("latents", "source", "ref")}
        if batched == "context":
            inputs = {key: value.expand(len(context), -1, -1, -1, -1) for key, value in inputs.items()}
            sigma, timestep = sigma.expand(len(context)), timestep.expand(len(context))
        with _record_tokens(model) as tokens:
            prepared = _prepare(model, context, inputs["source"], inputs["ref"])
            out[name] = model.velocity(inputs["latents"], sigma, prepared, timestep)
        if name == "c_source_ref_last":
            out |= tokens
    frames, height, width = case.meta["token_grid_f_h_w"]
    table = compute_rope(frames + recorded["ref"].shape[2], height, width, case.meta["config"]["head_dim"])
    return out | {"c_rope_cos": table.cos_LK, "c_rope_sin": table.sin_LK}


def compute_end_to_end(case: Case) -> dict[str, Tensor]:
    """Compute every step of the Euler solver with the model, and again with timesteps rounded to bf16."""
    inputs, config = case.group("in/"), case.meta["config"]
    runs = {"ref_last": "ref_last", "ref_first": "ref_first", "source_only": "source"}
    runs |= {"unconditioned": "none", "bf16t_ref_last": "ref_last"}
    grid = FlowSchedule(shift=config["shift"]).sigmas(config["steps"])
    out: dict[str, Tensor] = {}
    for name, variant in runs.items():
        model = _build_editor(case, **_PART_VARIANTS[variant])
        prepared = _prepare(model, inputs["context"], inputs["source"], inputs["ref"])
        steps = _trace_euler(model, prepared, inputs["noise"], grid, round_to_bf16=name.startswith("bf16"))
        out |= {f"{name}/step{index}": x for index, x in enumerate(steps)} | {name: steps[-1]}
    return out


def compute_vae(case: Case) -> dict[str, Tensor]:
    """Encode and decode with a Wan2.1 or Wan2.2 VAE, with and without tiling."""
    inputs, config = case.group("in/"), case.meta["config"]
    statistics = {name: inputs[name].tolist() for name in ("latents_mean", "latents_std")}
    video_vae = VideoVae(build_network(case.group("weights/"), statistics, case.name))
    video, latents = inputs["video"], inputs["z"]
    out = {
        "encode": video_vae.encode(video),
        "encode_first_frame_only": video_vae.encode(video[:, :, :1]),
        "encode_truncated_T": video_vae.posterior_truncated(video[:, :, :-1]).mode(),
        "decode_raw": video_vae.decode_unclamped(video_vae.denormalise(latents)),
    }
    video_vae.tiling = Tiling(size=tuple(config["tile_size"]), stride=tuple(config["tile_stride"]))
    return out | {"encode_tiled": video_vae.encode(video), "decode_tiled": video_vae.decode(latents)}


CASES: dict[str, Compute] = {
    "scheduler": compute_scheduler,
    "connectors": compute_connectors,
    "dit": compute_dit,
    "end_to_end": compute_end_to_end,
    "mllm": compute_mllm,
    "mllm_preprocess": compute_mllm_preprocess,
    "vae_wan21": compute_vae,
    "vae_wan22": compute_vae,
}


def _build_editor(case: Case, **parts: Any) -> KiwiEdit:
    """Build a KiwiEdit with the case's sizes and weights and the given `parts`."""
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "eps")
    config = {name: case.meta["config"][name] for name in names}
    sizes = DiTConfig(latent_channels=case.meta["config"]["in_dim"], **config)
    # VAE and MLLM are not used: the vectors start from latents and context.
    vae_spec = NewVae(z_dim=sizes.latent_channels, base_dim=4)
    mllm_spec = NewQwen(hidden_size=16, layers=1, vision_layers=1)
    model = KiwiEdit(KiwiConfig(dit=sizes, vae=vae_spec, mllm=mllm_spec, **parts))
    weights = from_published_state(case.group("weights/"))
    modules = nn.ModuleDict({part: getattr(model, part) for part in ("dit", "source", "reference")})
    present = {name.split(".")[0] for name in modules.state_dict()}
    load_strict(modules, {k: v for k, v in weights.items() if k.split(".")[0] in present}, case.name)
    return model.eval()


def _prepare(model: KiwiEdit, context: Tensor, source: Tensor, reference: Tensor) -> PreparedConditions:
    return model.prepare(Conditions(Context(context, None), source, reference), source.shape)


def _trace_euler(
    model: KiwiEdit, prepared: PreparedConditions, noise: Tensor, grid: Tensor, *, round_to_bf16: bool
) -> list[Tensor]:
    """Return the latents after each Euler step, with timesteps rounded to bf16 or not."""
    steps: list[Tensor] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        timestep = model.schedule.timestep(sigma[None])
        timestep = timestep.bfloat16().float() if round_to_bf16 else timestep
        nearest_sigma = grid[:-1][find_nearest_index(model.schedule.timestep(grid[:-1]), timestep)]
        return model.velocity(x, nearest_sigma, prepared, timestep)

    EulerSolver().solve(velocity, noise, grid, lambda step, x: steps.append(x))
    return steps


@contextmanager
def _record_tokens(model: KiwiEdit) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that records the tokens before and after the first block and after the last block."""
    tokens: dict[str, Tensor] = {}
    first, last = model.dit.blocks[0], model.dit.blocks[-1]
    hooks = [
        first.register_forward_pre_hook(lambda module, args: tokens.update(c_tokens_before_block0=args[0])),
        first.register_forward_hook(lambda module, args, output: tokens.update(c_tokens_after_block0=output)),
        last.register_forward_hook(lambda module, args, output: tokens.update(c_tokens_after_last_block=output)),
    ]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()
