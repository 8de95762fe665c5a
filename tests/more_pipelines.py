"""More tiny pipelines, most of them other classes around the networks of `tiny_pipelines`.

``build(name)`` returns one and the arguments of its call; `BUILD` has the names.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

import tiny_pipelines as tiny

Built = tuple[DiffusionPipeline, dict[str, Any]]

SIZE = {"height": 16, "width": 16}
IMAGE = torch.linspace(0.0, 1.0, 3 * 16 * 16).reshape(1, 3, 16, 16)


def build(name: str) -> Built:
    """The pipeline, the same at every call, and its arguments beside steps and generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        pipe, call = BUILD[name]()
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                tiny._randomise(component)
                component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"prompt": "a cat", **call}


def _around(family: str, kind: str, drop: tuple[str, ...] = (), **changed: Any) -> Any:
    """Another class around the parts of a tiny pipeline."""
    parts = {k: v for k, v in tiny.build(family).components.items() if k not in drop}
    return getattr(diffusers, kind)(**{**parts, **changed})


def _sd(kind: str, **changed: Any) -> Any:
    given = {"requires_safety_checker": False, **changed}
    return _around("sd", kind, ("image_encoder",), **given)


def _sdxl(kind: str, **changed: Any) -> Any:
    return _around("sdxl", kind, **changed)


def _controlnet(family: str) -> Any:
    unet = tiny.network(tiny.build(family))
    return diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4))


BUILD: dict[str, Callable[[], Built]] = {
    "StableDiffusionImg2ImgPipeline": lambda: (
        _sd("StableDiffusionImg2ImgPipeline"),
        {"image": IMAGE, "strength": 0.5},
    ),
    "StableDiffusionInstructPix2PixPipeline": lambda: (
        _sd("StableDiffusionInstructPix2PixPipeline", unet=_unet(8)),
        {"image": IMAGE},
    ),
    "StableDiffusionControlNetPipeline": lambda: (
        _sd("StableDiffusionControlNetPipeline", controlnet=_controlnet("sd")),
        {"image": IMAGE, "control_guidance_end": 0.5},
    ),
    "StableDiffusionControlNetImg2ImgPipeline": lambda: (
        _sd("StableDiffusionControlNetImg2ImgPipeline", controlnet=_controlnet("sd")),
        {"image": IMAGE, "control_image": IMAGE, "strength": 0.5},
    ),
    "StableDiffusionPAGPipeline": lambda: (
        _sd("StableDiffusionPAGPipeline", pag_applied_layers="mid"),
        {**SIZE, "pag_adaptive_scale": 0.002, "pag_scale": 2.0},
    ),
    "StableDiffusionSAGPipeline": lambda: (_sd("StableDiffusionSAGPipeline"), SIZE),
    "StableDiffusionUpscalePipeline": lambda: (
        _around(
            "sd",
            "StableDiffusionUpscalePipeline",
            ("image_encoder", "safety_checker", "feature_extractor"),
            unet=_unet(7, num_class_embeds=1000),
            low_res_scheduler=diffusers.DDPMScheduler(),
        ),
        {"image": IMAGE[:, :, :8, :8]},
    ),
    "StableDiffusionInpaintPipeline": lambda: (
        _sd("StableDiffusionInpaintPipeline", unet=_unet(9)),
        {"image": IMAGE, "mask_image": IMAGE[:, :1].round(), **SIZE},
    ),
    "AnimateDiffPipeline": lambda: (
        _around(
            "sd",
            "AnimateDiffPipeline",
            ("safety_checker",),
            motion_adapter=diffusers.MotionAdapter(
                block_out_channels=(16, 32),
                motion_layers_per_block=1,
                motion_num_attention_heads=2,
                motion_norm_num_groups=4,
            ),
        ),
        {**SIZE, "num_frames": 2},
    ),
    "StableDiffusionXLImg2ImgPipeline": lambda: (
        _sdxl("StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=False),
        {"image": IMAGE, "strength": 0.5},
    ),
    "StableDiffusionXLControlNetPipeline": lambda: (
        _sdxl("StableDiffusionXLControlNetPipeline", controlnet=_controlnet("sdxl")),
        {"image": IMAGE},
    ),
    "StableDiffusionXLPAGPipeline": lambda: (
        _sdxl("StableDiffusionXLPAGPipeline", pag_applied_layers="mid"),
        {**SIZE, "pag_scale": 2.0},
    ),
    "StableDiffusion3Img2ImgPipeline": lambda: (
        _around("sd3", "StableDiffusion3Img2ImgPipeline"),
        {"image": IMAGE, "strength": 0.5, "max_sequence_length": 32, **SIZE},
    ),
    "StableDiffusion3PAGPipeline": lambda: (
        _around(
            "sd3",
            "StableDiffusion3PAGPipeline",
            ("image_encoder", "feature_extractor"),
            pag_applied_layers=["blocks.0"],
        ),
        {"pag_scale": 2.0, "max_sequence_length": 32, **SIZE},
    ),
    "SanaPAGPipeline": lambda: (
        _around("sana", "SanaPAGPipeline", pag_applied_layers=["transformer_blocks.0"]),
        {"pag_scale": 2.0, **tiny.CALL["sana"]},
    ),
    "QwenImageImg2ImgPipeline": lambda: (
        _around("qwenimage", "QwenImageImg2ImgPipeline"),
        {"image": IMAGE.repeat(1, 1, 2, 2), "strength": 0.5, **tiny.CALL["qwenimage"]},
    ),
    "AuraFlowPipeline": lambda: (_auraflow(), {"max_sequence_length": 32, **SIZE}),
    "PixArtAlphaPipeline": lambda: (
        _pixart("PixArtAlphaPipeline"),
        {
            "use_resolution_binning": False,
            "max_sequence_length": 32,
            "clean_caption": False,
            **SIZE,
        },
    ),
    "PixArtSigmaPipeline": lambda: (
        _pixart("PixArtSigmaPipeline"),
        {
            "use_resolution_binning": False,
            "max_sequence_length": 32,
            "clean_caption": False,
            **SIZE,
        },
    ),
    "Lumina2Pipeline": lambda: (
        _lumina2(),
        {"max_sequence_length": 32, "cfg_trunc_ratio": 0.5, **SIZE},
    ),
    "LTXPipeline": lambda: (
        _ltx(),
        {"max_sequence_length": 32, "num_frames": 9, "height": 32, "width": 32},
    ),
    "WanPipeline": lambda: (_wan(), {"max_sequence_length": 32, "num_frames": 5, **SIZE}),
    "KandinskyV22Pipeline": lambda: (
        _kandinsky("KandinskyV22Pipeline"),
        {"image_embeds": torch.ones(1, 32), "negative_image_embeds": torch.zeros(1, 32), **SIZE},
    ),
    "KandinskyV22Img2ImgPipeline": lambda: (
        _kandinsky("KandinskyV22Img2ImgPipeline"),
        {
            "image": [IMAGE],
            "strength": 1.0,
            "image_embeds": torch.ones(1, 32),
            "negative_image_embeds": torch.zeros(1, 32),
            **SIZE,
        },
    ),
    "DDPMPipeline": lambda: (_ddpm(), {}),
}


def _unet(channels: int, **extra: Any) -> Any:
    held = dict(tiny._unet(32).config)
    return diffusers.UNet2DConditionModel.from_config({**held, "in_channels": channels, **extra})


def _t5() -> tuple[Any, Any]:
    tokenizer = tiny._t5_tokenizer()
    return tokenizer, tiny._t5_encoder(tokenizer, width=32)


def _auraflow() -> Any:
    tokenizer, encoder = _t5()
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny._kl_vae(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.7),
    )


def _pixart(kind: str) -> Any:
    tokenizer, encoder = _t5()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    )
    return getattr(diffusers, kind)(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny._kl_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _lumina2() -> Any:
    sana = tiny.build("sana")
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[128, 128, 128],
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        tokenizer=sana.tokenizer,
        text_encoder=sana.text_encoder,
        vae=tiny._flow_vae(0.1159),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _ltx() -> Any:
    tokenizer, encoder = _t5()
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _wan() -> Any:
    tokenizer, encoder = _t5()
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _kandinsky(kind: str) -> Any:
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
        class_embed_type=None,
    )
    movq = diffusers.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        in_channels=3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=32,
        norm_type="spatial",
        num_vq_embeddings=12,
        out_channels=3,
        up_block_types=["UpDecoderBlock2D"] * 2,
        vq_embed_dim=4,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="epsilon",
        variance_type="fixed_small",
    )
    return getattr(diffusers, kind)(unet=unet, scheduler=scheduler, movq=movq)


def _ddpm() -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(clip_sample=False))
