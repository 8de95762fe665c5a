"""Tiny diffusers pipelines with random weights, built offline, for the tests.

``build("flux")`` returns a complete pipeline of the named family, ``CALL["flux"]`` the arguments
its ``__call__`` needs beside a generator, the number of steps and the output type.
"""

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from string import printable
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as qwen_edit
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from cases import fast


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of noise, in colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def half(height: int, width: int) -> Image.Image:
    """A mask, white in its lower half."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[height // 2 :] = 255
    return Image.fromarray(pixels)


_FLUX = {"prompt": "a cat", "height": 16, "width": 16, "max_sequence_length": 32}

# A prompt costs one token a byte (a character in T5); what exceeds max_sequence_length is cut off.
CALL: dict[str, dict[str, Any]] = {
    "flux": {
        "prompt": "a cat",
        "height": 16,
        "width": 16,
        "max_sequence_length": 32,
        "guidance_scale": 3.5,
    },
    "sd3": {
        "prompt": "a cat",
        "height": 16,
        "width": 16,
        "max_sequence_length": 32,
        "guidance_scale": 4.0,
    },
    "sdxl": {"prompt": "a cat", "height": 16, "width": 16, "guidance_scale": 5.0},
    "sd": {"prompt": "a cat", "height": 16, "width": 16, "guidance_scale": 5.0},
    "flux2": {
        "prompt": "a cat",
        "height": 32,
        "width": 32,
        "max_sequence_length": 64,
        "text_encoder_out_layers": (1, 2, 3),
        "guidance_scale": 4.0,
    },
    "flux2_klein": {
        "prompt": "a cat",
        "height": 32,
        "width": 32,
        "max_sequence_length": 64,
        "text_encoder_out_layers": (1, 2, 3),
        "guidance_scale": 4.0,
    },
    "sana": {
        "prompt": "a cat",
        "height": 32,
        "width": 32,
        "max_sequence_length": 32,
        "complex_human_instruction": None,
        "use_resolution_binning": False,
        "guidance_scale": 4.5,
    },
    "qwenimage": {
        "prompt": "a cat",
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "max_sequence_length": 64,
        "true_cfg_scale": 4.0,
    },
    "zimage": {
        "prompt": "a cat",
        "height": 32,
        "width": 32,
        "max_sequence_length": 32,
        "guidance_scale": 3.0,
    },
    "dit": {"class_labels": [1, 2], "guidance_scale": 4.0},
    "kontext": {
        **_FLUX,
        "guidance_scale": 3.5,
        "image": picture(16, 32),
        "max_area": 256,
        "_auto_resize": False,
    },
    "flux_img2img": {
        **_FLUX,
        "guidance_scale": 3.5,
        "image": picture(16, 16),
        "strength": 0.5,
    },
    "chroma": {**_FLUX, "negative_prompt": "bad", "guidance_scale": 4.0},
    "chroma_img2img": {
        **_FLUX,
        "negative_prompt": "bad",
        "guidance_scale": 4.0,
        "image": picture(16, 16),
        "strength": 0.5,
    },
    "flux_fill": {
        **_FLUX,
        "guidance_scale": 30.0,
        "image": picture(16, 16),
        "mask_image": half(16, 16),
    },
    "flux_control": {**_FLUX, "guidance_scale": 3.5, "control_image": picture(16, 16)},
    "flux_controlnet": {
        **_FLUX,
        "negative_prompt": "bad",
        "true_cfg_scale": 2.0,
        "guidance_scale": 3.5,
        "control_image": picture(16, 16),
        "controlnet_conditioning_scale": 0.7,
    },
    "qwenimage_edit": {
        "prompt": "a cat",
        "negative_prompt": "bad",
        "height": 32,
        "width": 32,
        "true_cfg_scale": 4.0,
        "image": picture(32, 32),
    },
}

FAMILIES = tuple(CALL)
FIRST = FAMILIES[:10]  # of which the others are variants, where a test is about something else
OTHERS = ("kontext", "flux_img2img", "chroma", "flux_fill", "flux_controlnet", "qwenimage_edit")
FROM_IMAGE = ("flux_img2img", "chroma_img2img")  # which begin with noise on an image


def some(*names: str) -> list[Any]:
    """For parametrize: these families, and the others as slow tests."""
    return fast(names, FAMILIES)


def build(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **variant: Any
) -> DiffusionPipeline:
    """A fresh pipeline of the family ``name``; equal arguments give equal weights.

    Variants: ``flux(guidance_embeds)`` and ``sd(prediction_type, scheduler)``. The global random
    state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pipeline = _BUILDERS[name](**variant)
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                _randomise(component)
                component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if dtype == torch.float32 else pipeline.to(dtype=dtype)


def save(name: str, folder: str | Path, seed: int = 0, **variant: Any) -> Path:
    """Build a pipeline and save it to ``folder`` (safetensors); returns the folder."""
    build(name, seed, **variant).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def unsaved(name: str) -> dict[str, Any]:
    """Parts that :func:`save` leaves out, for `from_pretrained`."""
    return {"processor": QwenReader(_qwen_tokenizer())} if name == "qwenimage_edit" else {}


def network(pipeline: DiffusionPipeline) -> nn.Module:
    """The denoising network: ``pipeline.transformer``, or ``pipeline.unet`` for sd and sdxl."""
    return pipeline.components.get("transformer") or pipeline.components["unet"]


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Draw all matrices and biases anew.

    Diffusers starts output layers and adaLN gates at zero and leaves some parameters
    uninitialised. Other norm weights keep their values; those of the queries grow, for attention
    so sharp that single tokens of a long prompt matter.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            parameter.normal_(std=1 / math.sqrt(fan_in))
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        elif "norm_q" in name:
            parameter.fill_(3.0)


# Families


def _flux(guidance_embeds: bool = True) -> DiffusionPipeline:
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=_flux_scheduler(),
        vae=_flow_vae(shift_factor=0.1159),
        text_encoder=_clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=_t5_encoder(t5, width=32),
        tokenizer_2=t5,
        transformer=transformer,
    )


def _flux_around(kind: str, channels: int = 16, **more: Any) -> DiffusionPipeline:
    """Another pipeline around FLUX's network, with so many channels in."""
    parts = dict(_flux().components)
    held = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    sizes = {**held, "in_channels": channels, "out_channels": 16}
    parts["transformer"] = diffusers.FluxTransformer2DModel(**sizes)
    takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return getattr(diffusers, kind)(**{k: v for k, v in {**parts, **more}.items() if k in takes})


def _flux_controlnet() -> DiffusionPipeline:
    held = _flux().transformer.config
    sizes = {k: v for k, v in held.items() if not k.startswith("_") and k != "out_channels"}
    net = diffusers.FluxControlNetModel(**{**sizes, "num_layers": 1, "num_single_layers": 1})
    return _flux_around("FluxControlNetPipeline", controlnet=net)


def _chroma(kind: str = "ChromaPipeline") -> DiffusionPipeline:
    t5 = _t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return getattr(diffusers, kind)(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flow_vae(shift_factor=0.1159),
        text_encoder=_t5_encoder(t5, width=32),
        tokenizer=t5,
        transformer=transformer,
    )


def _sd3() -> DiffusionPipeline:
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,  # that of T5, at least the sum of the two CLIPs
        caption_projection_dim=32,  # heads times head dimension
        pooled_projection_dim=64,  # the sum of the two CLIP projections
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flow_vae(shift_factor=0.0609),
        text_encoder=_clip_encoder(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=_clip_encoder(clip, projection=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5_encoder(t5, width=64),
        tokenizer_3=t5,
    )


def _sdxl() -> DiffusionPipeline:
    clip = _clip_tokenizer()
    time_ids, pooled = 6, 32
    unet = _unet(
        cross_attention_dim=64,  # the sum of the two CLIPs
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=time_ids * 8 + pooled,
        transformer_layers_per_block=(1, 1),
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **_SD_BETAS, steps_offset=1, timestep_spacing="leading"
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_kl_vae(),
        text_encoder=_clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=_clip_encoder(clip, projection=True),
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sd(
    prediction_type: str = "epsilon",
    scheduler: type[SchedulerMixin] | SchedulerMixin = diffusers.DDIMScheduler,
) -> DiffusionPipeline:
    """A scheduler class gets the family's settings; an instance is taken as it is."""
    clip = _clip_tokenizer()
    if isinstance(scheduler, type):
        settings = diffusers.DDIMScheduler(
            **_SD_BETAS,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        )
        scheduler = scheduler.from_config(settings.config)
    return diffusers.StableDiffusionPipeline(
        vae=_kl_vae(),
        text_encoder=_clip_encoder(clip),
        tokenizer=clip,
        unet=_unet(cross_attention_dim=32),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _flux2() -> DiffusionPipeline:
    """The real tokenizer is a PixtralProcessor; a chat template is all that the pipeline uses."""
    tokenizer = _qwen_tokenizer()
    text_config = {
        "model_type": "mistral",
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        **_language_model_sizes(tokenizer),
    }
    vision_config = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 8,
    }
    config = transformers.Mistral3Config(
        text_config=text_config, vision_config=vision_config, image_token_index=5
    )
    return diffusers.Flux2Pipeline(
        scheduler=_flux_scheduler(),
        vae=_flux2_vae(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=True),
    )


def _flux2_klein() -> DiffusionPipeline:
    tokenizer = _qwen_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=_flux_scheduler(),
        vae=_flux2_vae(),
        text_encoder=transformers.Qwen3ForCausalLM(_qwen3_config(tokenizer, layers=3)),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance_embeds=False),
    )


def _sana() -> DiffusionPipeline:
    tokenizer = _t5_tokenizer()
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.unk_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=32,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="dpmsolver++",
        solver_order=2,
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config),
        vae=_sana_vae(),
        transformer=transformer,
        scheduler=scheduler,
    )


def _qwenimage() -> DiffusionPipeline:
    tokenizer = _qwen_tokenizer()
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
    return diffusers.QwenImagePipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=_qwen_vl_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


_DIMENSIONS = qwen_edit.calculate_dimensions


class QwenReader:
    """A text with its image for the encoder; transformers' own processor needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        sizes = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
        self.images, self.tokenizer = transformers.Qwen2VLImageProcessorPil(size=sizes), tokenizer

    def __call__(self, text: list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        pixels = self.images(images=images, return_tensors=return_tensors)
        counts = (pixels["image_grid_thw"].prod(1) // self.images.merge_size**2).tolist()
        whole = [
            one.replace("<|image_pad|>", "<|image_pad|>" * count)
            for one, count in zip(text, counts, strict=True)
        ]
        words = self.tokenizer(whole, padding=padding, return_tensors=return_tensors)
        return transformers.BatchFeature({**words, **pixels})


def _qwenimage_edit() -> DiffusionPipeline:
    """The parts of Qwen-Image, and what reads images for its text encoder.

    Images are resized to 32 x 32 pixels, from here on, where the pipeline has 1024 x 1024.
    """
    qwen_edit.calculate_dimensions = lambda area, ratio: _DIMENSIONS(32 * 32, ratio)
    parts = _qwenimage().components
    return diffusers.QwenImageEditPipeline(**parts, processor=QwenReader(parts["tokenizer"]))


def _zimage() -> DiffusionPipeline:
    tokenizer = _qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=_flow_vae(shift_factor=0.1159),
        text_encoder=transformers.Qwen3Model(_qwen3_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _dit() -> DiffusionPipeline:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # twice the latent channels: the variance is learned
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,  # the pipeline takes class 1000 as the null class
        norm_num_groups=4,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer=transformer, vae=_kl_vae(), scheduler=scheduler)


_BUILDERS: dict[str, Callable[..., DiffusionPipeline]] = {
    "flux": _flux,
    "sd3": _sd3,
    "sdxl": _sdxl,
    "sd": _sd,
    "flux2": _flux2,
    "flux2_klein": _flux2_klein,
    "sana": _sana,
    "qwenimage": _qwenimage,
    "zimage": _zimage,
    "dit": _dit,
    "kontext": lambda: _flux_around("FluxKontextPipeline"),
    "flux_img2img": lambda: _flux_around("FluxImg2ImgPipeline"),
    "chroma": _chroma,
    "chroma_img2img": lambda: _chroma("ChromaImg2ImgPipeline"),
    "flux_fill": lambda: _flux_around("FluxFillPipeline", channels=16 + 16 + 16),
    "flux_control": lambda: _flux_around("FluxControlPipeline", channels=32),
    "flux_controlnet": _flux_controlnet,
    "qwenimage_edit": _qwenimage_edit,
}


# Networks and schedulers shared by families

_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        shift=3.0,
    )


def _unet(cross_attention_dim: int, **extra: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        **extra,
    )


def _flux2_transformer(guidance_embeds: bool) -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,  # three layers of the text encoder side by side
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


# Autoencoders: two blocks, hence scale factor 2

_VAE_SIZES = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def _kl_vae() -> nn.Module:
    return diffusers.AutoencoderKL(
        **_VAE_SIZES, sample_size=16, scaling_factor=0.18215, force_upcast=False
    )


def _flow_vae(shift_factor: float) -> nn.Module:
    return diffusers.AutoencoderKL(
        **_VAE_SIZES,
        sample_size=16,
        scaling_factor=0.3611,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def _flux2_vae() -> nn.Module:
    return diffusers.AutoencoderKLFlux2(**_VAE_SIZES, sample_size=32)


def _sana_vae() -> nn.Module:
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


# Text encoders


def _clip_encoder(tokenizer: Any, projection: bool = False) -> nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if projection:
        return transformers.CLIPTextModelWithProjection(config)
    return transformers.CLIPTextModel(config)


def _t5_encoder(tokenizer: Any, width: int) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return transformers.T5EncoderModel(config)


def _language_model_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _qwen3_config(tokenizer: Any, layers: int) -> Any:
    return transformers.Qwen3Config(
        num_hidden_layers=layers, num_key_value_heads=1, **_language_model_sizes(tokenizer)
    )


def _qwen_vl_encoder(tokenizer: Any) -> nn.Module:
    text_config = {
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        **_language_model_sizes(tokenizer),
    }
    vision_config = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        hidden_size=16,
        vocab_size=len(tokenizer),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        vision_token_id=image,
        image_token_id=image,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


# Tokenizers: vocabularies of bytes or characters, no merges, no files


@lru_cache
def _byte_symbols() -> tuple[str, ...]:
    return tuple(sorted(ByteLevel.alphabet()))


def _clip_tokenizer() -> Any:
    """All bytes, inside and at the end of a word, and two special tokens: 514 ids."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    """Printable ASCII characters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(character, -3.0) for character in printable.strip()]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


# The words of QwenImage's prompt template, of which the pipeline drops the first 34 tokens: with
# one token a word they end where the prompt begins.
_QWEN_TEMPLATE_WORDS = ["system", "Describe", " the", " image", " by", " detailing", " color"]
_QWEN_TEMPLATE_WORDS += [" shape", " size", " texture", " quantity", " text", " spatial"]
_QWEN_TEMPLATE_WORDS += [" relationships", " of", " objects", " and", " background"]
_QWEN_TEMPLATE_WORDS += ["user", "assistant"]

# Flux2's long system message is left out, so that short prompts matter.
_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_tokenizer() -> Any:
    """All bytes, with the special tokens of Qwen and a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    special += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    vocab = {token: i for i, token in enumerate([*_byte_symbols(), *special])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab, merges=[], model_max_length=512, additional_special_tokens=special[1:]
    )
    tokenizer.add_tokens(_QWEN_TEMPLATE_WORDS)
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
