"""What this package computes for each golden case; the names of outputs are those of the vectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kiwi.checkpoints.published import from_published_state
from kiwi.flow.objective import add_noise, velocity_loss, velocity_target
from kiwi.flow.schedule import FlowSchedule, nearest
from kiwi.flow.solvers import EulerSolver
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import Context, join_contexts, mlp
from kiwi.models.dit.rope import rope_table
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference, NoReference, NoSource, PrependReference
from kiwi.models.kiwi import Conditions, KiwiEdit, Prepared
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.vae.wan import NewVae
from kiwi.parity.golden import Case, Compute
from kiwi.parity.mllm_cases import mllm, mllm_preprocess
from kiwi.parity.vae_cases import vae_wan21, vae_wan22
from kiwi.weights.strict import load_strict


def scheduler(case: Case) -> dict[str, Tensor]:
    """Tables, loss weights, and the published nearest-entry look-up, with and without bf16 timesteps."""
    given, config = case.group("in/"), case.meta["config"]
    schedule = FlowSchedule(shift=config["shift"], num_train_timesteps=config["num_train_timesteps"])
    grids = {
        "inference": schedule.sigmas(config["inference_steps"], sigma_min=config["sigma_min"]),
        "training": schedule.sigmas(config["training_steps"], sigma_min=config["sigma_min"]),
    }
    partial = config["partial"]
    grids["partial"] = FlowSchedule(shift=partial["shift"]).sigmas(
        partial["steps"], strength=partial["denoising_strength"]
    )
    out: dict[str, Tensor] = {}
    for name, grid in grids.items():
        out[f"{name}_sigmas"], out[f"{name}_timesteps"] = grid[:-1], schedule.timestep(grid[:-1])
        rounded = out[f"{name}_timesteps"].bfloat16().float()
        index = nearest(out[f"{name}_timesteps"], rounded)
        out |= {f"{name}_bf16_timesteps": rounded, f"{name}_bf16_index": index, f"{name}_bf16_sigma": grid[index]}
    out["training_weights"] = schedule.loss_weight(out["training_sigmas"])

    def step(timestep: Tensor) -> Tensor:
        at = int(nearest(out["inference_timesteps"], timestep.reshape(1)))
        return EulerSolver().solve(
            lambda x, sigma: given["step_model_output"], given["step_sample"], grids["inference"][at : at + 2]
        )

    out["step"], out["step_offgrid"] = step(given["step_timestep"]), step(given["step_offgrid_timestep"])
    out["step_last"] = step(out["inference_timesteps"][-1])

    def sigma_of(timestep: Tensor) -> Tensor:
        return out["training_sigmas"][nearest(out["training_timesteps"], timestep)]

    x0, noise, prediction = given["train_x0"], given["train_noise"], given["train_prediction"]
    sigma, rounded_sigma = sigma_of(given["train_timestep"]), sigma_of(given["train_timestep_bf16_as_f32"])
    out |= {"train_sigma": sigma, "training_weight": schedule.loss_weight(sigma)}
    out |= {"add_noise": add_noise(x0, noise, sigma), "add_noise_bf16_timestep": add_noise(x0, noise, rounded_sigma)}
    out["training_target"] = velocity_target(x0, noise)
    out["training_loss"] = velocity_loss(prediction, out["training_target"]) * out["training_weight"]
    return out


def connectors(case: Case) -> dict[str, Tensor]:
    """Both connectors and the context they make together."""
    given, config = case.group("in/"), case.meta["config"]
    query, latent = (nn.ModuleDict({"connector": mlp(config["hidden"], config["dit_dim"])}) for _ in range(2))
    own = nn.ModuleDict({"query": query, "latent": latent})
    load_strict(own, from_published_state(case.group("weights/")), case.name)
    queries, references = query["connector"](given["query_features"]), latent["connector"](given["ref_features"])
    context = join_contexts(Context(references, None), Context(queries, None)).tokens_BND
    return {"connetor": queries, "ref_connector": references, "context_ref_mode": context}


_VARIANTS: dict[str, dict[str, Any]] = {
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
    "e_ctx2": ("none", "off_grid", "_context"),
    "e2_batch2": ("ref_only", "batch2", "_batch2"),
    "e3_batch2_equal_t": ("ref_only", "batch2_equal", "_batch2"),
}
"""Output: which parts, which timestep, which of the inputs are the batch of two."""


def dit(case: Case) -> dict[str, Tensor]:
    """The transformer in every published mode, its rotary table and its tokens between blocks."""
    given = case.group("in/")
    out: dict[str, Tensor] = {}
    models = {name: _editor(case, **parts) for name, parts in _VARIANTS.items()}
    for name, (variant, when, batch) in _DIT_MODES.items():
        model, timestep = models[variant], given[f"timestep_{when}"]
        sigma = given["scheduler_sigmas"][nearest(given["scheduler_timesteps"], timestep)]
        context = given["context_batch2" if batch else "context"]
        two = "_batch2" if batch == "_batch2" else ""
        inputs = {key: given.get(key + two, given[key]) for key in ("latents", "source", "ref")}
        if batch == "_context":
            inputs = {key: value.expand(len(context), -1, -1, -1, -1) for key, value in inputs.items()}
            sigma, timestep = sigma.expand(len(context)), timestep.expand(len(context))
        with _TokenTrace(model) as trace:
            prepared = _prepare(model, context, inputs["source"], inputs["ref"])
            out[name] = model.velocity(inputs["latents"], sigma, prepared, timestep)
        if name == "c_source_ref_last":
            out |= trace.tokens
    frames, height, width = case.meta["token_grid_f_h_w"]
    table = rope_table(frames + given["ref"].shape[2], height, width, case.meta["config"]["head_dim"])
    return out | {"c_rope_cos": table.cos_LK, "c_rope_sin": table.sin_LK}


def end_to_end(case: Case) -> dict[str, Tensor]:
    """The Euler loop over the model, every step of it, and once with timesteps rounded to bf16."""
    given, config = case.group("in/"), case.meta["config"]
    runs = {"ref_last": "ref_last", "ref_first": "ref_first", "source_only": "source"}
    runs |= {"unconditioned": "none", "bf16t_ref_last": "ref_last"}
    out: dict[str, Tensor] = {}
    for name, variant in runs.items():
        model = _editor(case, **_VARIANTS[variant])
        prepared = _prepare(model, given["context"], given["source"], given["ref"])
        grid = FlowSchedule(shift=config["shift"]).sigmas(config["steps"])

        def velocity(
            x: Tensor,
            sigma: Tensor,
            rounds: bool = name.startswith("bf16"),
            model: KiwiEdit = model,
            prepared: Prepared = prepared,
            grid: Tensor = grid,
        ) -> Tensor:
            timestep = model.schedule.timestep(sigma[None])
            if rounds:
                timestep = timestep.bfloat16().float()
            looked_up = grid[:-1][nearest(model.schedule.timestep(grid[:-1]), timestep)]
            return model.velocity(x, looked_up, prepared, timestep)

        def keep(step: int, x: Tensor, name: str = name) -> None:
            out[f"{name}/step{step}"] = x

        out[name] = EulerSolver().solve(velocity, given["noise"], grid, keep)
    return out


CASES: dict[str, Compute] = {
    "scheduler": scheduler,
    "connectors": connectors,
    "dit": dit,
    "end_to_end": end_to_end,
    "mllm": mllm,
    "mllm_preprocess": mllm_preprocess,
    "vae_wan21": vae_wan21,
    "vae_wan22": vae_wan22,
}
"""Every case."""


def _editor(case: Case, **parts: Any) -> KiwiEdit:
    """A KiwiEdit of the case's size with the case's weights in the parts that it has."""
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "eps")
    config = {name: case.meta["config"][name] for name in names}
    sizes = DiTConfig(latent_channels=case.meta["config"]["in_dim"], **config)
    # VAE and MLLM take no part: the vectors start at latents and context.
    vae = NewVae(z_dim=sizes.latent_channels, base_dim=4)
    model = KiwiEdit(KiwiConfig(dit=sizes, vae=vae, mllm=NewQwen(hidden_size=16, layers=1, vision_layers=1), **parts))
    weights = from_published_state(case.group("weights/"))
    own = nn.ModuleDict({name: getattr(model, name) for name in ("dit", "source", "reference")})
    present = {name.split(".")[0] for name in own.state_dict()}
    load_strict(own, {k: v for k, v in weights.items() if k.split(".")[0] in present}, case.name)
    return model.eval()


def _prepare(model: KiwiEdit, context: Tensor, source: Tensor, reference: Tensor) -> Prepared:
    return model.prepare(Conditions(Context(context, None), source, reference), source.shape)


class _TokenTrace:
    """Records the tokens that enter the first block, leave it, and leave the last."""

    def __init__(self, model: KiwiEdit) -> None:
        self.model = model
        self.tokens: dict[str, Tensor] = {}

    def __enter__(self) -> _TokenTrace:
        first, last = self.model.dit.blocks[0], self.model.dit.blocks[-1]
        self.hooks = [
            first.register_forward_pre_hook(lambda module, args: self._keep("before_block0", args[0])),
            first.register_forward_hook(lambda module, args, output: self._keep("after_block0", output)),
            last.register_forward_hook(lambda module, args, output: self._keep("after_last_block", output)),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, name: str, tokens: Tensor) -> None:
        self.tokens[f"c_tokens_{name}"] = tokens
